"""The run report: the records of one or several runs as one self-contained HTML page.

It uses only `core` and `config`: it reads the files of a run folder, never live objects, and never
imports torch, so a report can be made anywhere, also of a run in progress.

    load     a run folder -> Run, even if the folder is incomplete or damaged
    summary  Run -> the headline numbers
    figures  Runs -> plotly figures
    corpus   Runs -> the figure of their document lengths
    markup   escaping, and numbers as people write them
    verdict  Run -> its verdict as HTML
    sections Run -> pieces of HTML
    style    the page's CSS, script and colours
    page     everything above -> one HTML file
"""
