"""What every other package may use. Depends on rich, filelock and huggingface_hub; never on
torch.
"""
