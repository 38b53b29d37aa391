"""Links of the built site: ``python docs/links.py FOLDER`` follows each, and the way to a first table."""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

FIRST, TABLE, CLICKS = "index.html", "gallery/plot_2_atlas.html", 2


class Page(HTMLParser):
    """What a page links to, and the places in it that can be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.places: set[str] = {""}
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        self.places |= {value for name in ("id", "name") if (value := told.get(name))}
        self.links |= {value for name in ("href", "src") if (value := told.get(name))}


def main(site: Path) -> None:
    """Raise SystemExit with all that is wrong."""
    paths = {path.relative_to(site).as_posix(): path for path in sorted(site.rglob("*.html"))}
    pages = {name: Page(path) for name, path in paths.items() if not name.startswith("_static/")}
    wrong, leads = [], {name: set[str]() for name in pages}
    for name, page in pages.items():
        for link in map(urlsplit, page.links):
            if link.scheme or link.netloc:
                continue
            path = (site / name).parent / unquote(link.path) if link.path else site / name
            target = path.resolve().relative_to(site).as_posix()
            leads[name].add(target)
            if target in pages:
                found = unquote(link.fragment) in pages[target].places
            else:
                found = path.exists()
            if not found:
                wrong.append(f"{name}: {link.geturl()} leads nowhere")
    reached = {FIRST}
    for _ in range(CLICKS):
        reached |= {target for name in reached & pages.keys() for target in leads[name]}
    if TABLE not in reached:
        wrong.append(f"{TABLE} is more than {CLICKS} clicks from {FIRST}")
    if wrong:
        raise SystemExit("\n".join(wrong))
    print(f"{sum(len(page.links) for page in pages.values())} links of {len(pages)} pages lead somewhere")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
