"""The command line without its pictures and its page: run by tests that look at what it computes."""

from jaxablate import cli, figures, report


def nothing(*_, **__) -> None:
    pass


figures.save_figures = figures.save_finding_figures = report.write_report = nothing

if __name__ == "__main__":
    cli.main()
