"""A report as a test reads it: its structure is checked, its tables and figures are taken apart."""

import html.parser
import re

VOID = {"meta", "br", "img"}


class Page(html.parser.HTMLParser):
    """Reads a page: `faults` holds what is wrong with its structure, `tables` the cells, `figures` the drawings."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.faults, self.ids, self.links, self.tables = [], [], [], [], []
        self.drawings, self.words, self.headings, self.styles, self.titles = [], [], [], [], {}
        self.policy, self.images = "", []
        self.feed(text)
        self.close()
        if self.open:
            self.faults.append(f"never closed: {self.open}")
        self.faults += [
            f"id {name} is there {self.ids.count(name)} times" for name in set(self.ids) if self.ids.count(name) > 1
        ]
        self.faults += [f"nothing has the id {name}" for name in self.links if name not in self.ids]
        for label in self.drawings:
            said = [self.titles.get(name, "") for name in label.split()]
            if len(said) != 2 or not all(said):
                self.faults.append(f"a drawing without words: {label}")

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if len(given) < len(attributes):
            self.faults.append(f"an attribute twice: {attributes}")
        for name, value in attributes:
            if name.startswith("on") or tag in ("script", "iframe", "object", "embed", "link", "form"):
                self.faults.append(f"{tag} {name}")
            if re.search(r"https?:|javascript:|//", value or "") and name not in ("title", "aria-label", "alt", "src"):
                self.faults.append(f"{name} leads elsewhere: {value}")
            self.links += re.findall(r"url\(#([^)]+)\)", value or "")
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"]
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"].removeprefix("#")] if "href" in given else []
        if tag == "svg":
            if given.get("role") != "img":
                self.faults.append("a drawing without a role")
            self.drawings.append(given.get("aria-labelledby", ""))
        self.images += [given.get("alt")] if tag == "img" else []
        if tag == "img" and not (given.get("alt") and given.get("src", "").startswith("data:image/png;base64,")):
            self.faults.append(f"an image without words, or from elsewhere: {given}")
        if tag == "th" and "scope" not in given:
            self.faults.append("a th without a scope")
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag in ("title", "desc"):
            self.titles[given.get("id", "")] = ""
        if tag not in VOID:
            self.open.append((tag, given.get("id", "")))

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open[-1][0] != tag:
            self.faults.append(f"</{tag}> while {self.open[-3:]} are open")
        else:
            self.open.pop()

    def handle_data(self, data):
        tags = [tag for tag, _ in self.open]
        if not tags:
            return
        if tags[-1] == "style":
            self.styles.append(data)
            return
        if "td" in tags or "th" in tags:
            self.tables[-1][-1][-1] += data
        if tags[-1] in ("title", "desc"):
            self.titles[self.open[-1][1]] += data
        if tags[-1] in ("h1", "h2", "h3"):
            self.headings.append(data)
        if "svg" not in tags:
            self.words.append(data)

    @property
    def text(self):
        return " ".join("".join(self.words).split())

    def table(self, corner, number=0):
        """Return the rows below the header of the first, second, … table whose first cell says so."""
        return [table for table in self.tables if table[0][0] == corner][number][1:]
