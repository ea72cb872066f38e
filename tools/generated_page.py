"""A page in ``docs/`` that is made from the code: written, or compared with what is there."""

from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"


def write_or_check(page: Path, text: str, *, source: str, arguments: list[str]) -> int:
    """Write the page, or with ``--check`` only say whether it differs; return the exit status."""
    if arguments != ["--check"]:
        page.write_text(text)
        return 0
    if page.is_file() and page.read_text() == text:
        return 0
    print(f"docs/{page.name} is not what {source} makes; `make generate` writes it anew.")
    return 1
