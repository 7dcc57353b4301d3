"""The run report: the records of one or several runs as one self-contained HTML page.

Level 6, but it knows only `core` and `config`: it reads the files of a run folder, never live
objects, and never imports torch, so a report can be made anywhere, of a run that is still going.

    load     a run folder -> Run, however cut or unfinished the folder is
    summary  Run -> the few numbers a reader wants first
    figures  Runs -> plotly figures
    markup   escaping, and numbers as people read them
    corpus   what a run was trained on -> HTML
    verdict  its verdict -> HTML
    sections Run -> pieces of HTML
    style    the page's CSS, script and colours
    page     everything above -> one HTML file
"""
