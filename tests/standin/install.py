"""Put the stand-in into a virtual environment that has PyTorch for CUDA:

    python tests/standin/install.py VENV

PyTorch finds its CUDA libraries by their places in that environment, so these are replaced there.
Only VENV changes; never do it to one that shall use a GPU.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIBRARIES = {  # what is replaced below nvidia/, its source, and whether its symbols have versions
    "cu13/lib/libcudart.so.13": ("runtime.c", True),
    "cu13/lib/libcublas.so.13": ("libraries.c", True),
    "cu13/lib/libcublasLt.so.13": ("libraries.c", True),
    "cu13/lib/libcupti.so.13": ("libraries.c", True),
    "cudnn/lib/libcudnn.so.9": ("libraries.c", True),
    "nccl/lib/libnccl.so.2": ("libraries.c", False),
}
DRIVER = "libcuda.so.1"


def main(venv: Path) -> None:
    (packages,) = venv.glob("lib/python3*/site-packages")
    include = [
        packages / "nvidia/cu13/include",
        packages / "triton/backends/nvidia/include",
        packages / "nvidia/cudnn/include",
    ]
    asked = _undefined(
        [*(packages / "torch/lib").glob("*.so"), *packages.glob("nvidia/*/lib/*.so*")]
    )
    for place, (source, versioned) in LIBRARIES.items():
        name = Path(place).name
        family = name.removeprefix("lib").split(".")[0]
        wanted = {f for f, of in asked if of == name or (not versioned and f.startswith(family))}
        _build(packages / "nvidia" / place, source, wanted, name if versioned else None, include)
    header = (include[0] / "cuda.h").read_text()
    folder = venv / "standin"
    folder.mkdir(exist_ok=True)
    _build(
        folder / DRIVER, "driver.c", set(re.findall(r"\b(cu[A-Z]\w+)\s*\(", header)), None, include
    )
    shutil.copy(folder / DRIVER, folder / "libcuda.so")
    print(f"run with LD_LIBRARY_PATH={folder}")


def _undefined(libraries: list[Path]) -> set[tuple[str, str]]:
    """Functions that these take from elsewhere, each with the library it is asked of, if named."""
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", *map(str, libraries)], capture_output=True, text=True
    )
    return set(re.findall(r" U (\w+)(?:@(lib\S+))?$", listed.stdout, re.MULTILINE))


def _build(
    target: Path, source: str, wanted: set[str], version: str | None, include: list[Path]
) -> None:
    """Compile a library with the functions of the source; whatever else is wanted returns 0."""
    code = (HERE / source).read_text()
    rest = sorted(f for f in wanted if not re.search(rf"\b{f}\(", code))
    with tempfile.TemporaryDirectory() as folder:
        # cuda.h of one wheel needs crt/ of the other.
        (Path(folder) / "crt").symlink_to(include[1] / "crt")
        others = Path(folder) / "others.c"
        others.write_text("".join(f"int {name}() {{ return 0; }}\n" for name in rest))
        command = ["gcc", "-shared", "-fPIC", "-O1", "-w", f"-I{folder}"]
        command += [f"-I{include[0]}", f"-I{include[2]}", str(HERE / source), str(others)]
        command += [f"-Wl,-soname,{target.name}", "-ldl"]
        if version:
            script = Path(folder) / "versions"
            script.write_text(f"{version} {{ global: *; }};\n")
            command.append(f"-Wl,--version-script={script}")
        subprocess.run([*command, "-o", str(target)], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
