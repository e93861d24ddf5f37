"""contact_sheet.html: every crop with its scores, kept and rejected, for a person to look at and tick."""

from __future__ import annotations

import base64
import html
from collections import Counter, defaultdict
from pathlib import Path
from string import Template
from urllib.parse import quote

from dinocell.core.files import atomic_write_text
from dinocell.curation.records import CROPS, SET_ASIDE, Found
from dinocell.curation.sources import UNSAFE
from dinocell.curation.thumbnails import ThumbnailReader

PAGES = "contact_sheets"

HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Contact sheet</title><style>
:root { color-scheme: light dark; --line: #8885; --soft: #888; --out: #c62828; }
body { font: 14px/1.4 system-ui, sans-serif; margin: 0 auto; max-width: 1500px; padding: 0 16px 40px; }
header { position: sticky; top: 0; background: Canvas; padding: 10px 0; z-index: 1;
  border-bottom: 1px solid var(--line); }
h1 { font-size: 18px; margin: 0 0 4px; } h2 { font-size: 16px; margin: 28px 0 2px; }
h3 { font-size: 13px; margin: 12px 0 6px; color: var(--soft); font-weight: 600; }
p { margin: 2px 0; } .soft { color: var(--soft); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(168px, 1fr)); gap: 10px; }
figure { margin: 0; border: 1px solid var(--line); border-radius: 6px; padding: 4px; overflow: hidden; }
figure .frame { height: 160px; display: flex; align-items: center; justify-content: center; background: #8882; }
figure img { max-width: 100%; max-height: 160px; display: block; }
figcaption { font-size: 12px; overflow-wrap: anywhere; padding-top: 4px; } figcaption b { font-weight: 600; }
figcaption span { white-space: nowrap; } figcaption label > span, figcaption .reason { white-space: normal; }
label { display: flex; gap: 6px; align-items: flex-start; cursor: pointer; }
.rejected { border-style: dashed; } .reason { color: var(--out); }
figure:has(input:checked) { outline: 3px solid var(--out); } figure:has(input:checked) img { opacity: .45; }
button { font: inherit; padding: 4px 12px; }
table { border-collapse: collapse; } td { padding: 2px 14px 2px 0; }
</style></head><body>
"""
PAGE = Template(
    HEAD
    + """<header><h1>$title</h1>
<p>$summary</p>
<p><button id="save">Download $file</button> <button id="copy">Copy</button>
<span id="count"></span></p>
<p class="soft">Tick what should not be trained on, put $file into the output folder, and run the same command again.
Untick to take a crop back. L: Laplacian variance; F: focus (the same at half size after a slight blur).</p></header>
$body
<script>
const boxes = [...document.querySelectorAll("input[data-crop]")];
const ticked = () => boxes.filter(b => b.checked).map(b => b.dataset.crop).sort();
const show = () => document.getElementById("count").textContent = ticked().length + " ticked";
const text = () => ticked().map(crop => crop + "\\n").join("");
boxes.forEach(b => b.addEventListener("change", show));
document.getElementById("save").onclick = () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text()], {type: "text/plain"}));
  link.download = "$file"; link.click();
};
document.getElementById("copy").onclick = () => navigator.clipboard.writeText(text());
show();
</script></body></html>
"""
)
INDEX = Template(HEAD + "<header><h1>$title</h1><p>$summary</p></header>$body</body></html>\n")


def write_contact_sheet(out: Path, found: list[Found], pictures: ThumbnailReader, limit: int) -> None:
    """Write the sheet; with more than `limit` crops, contact_sheet.html lists one page per dataset.

    The ticks of a single sheet make exclude.txt, those of a page exclude-DATASET.txt; the next run applies all of them.
    """
    groups: dict[str, list[Found]] = defaultdict(list)
    for item in found:
        groups[item.row.dataset].append(item)
    if len(found) <= limit:
        body = "".join(_section(name, items, pictures, "") for name, items in sorted(groups.items()))
        _write(out / "contact_sheet.html", PAGE, "Contact sheet", found, body, "exclude.txt")
        return
    rows = []
    for number, (name, items) in enumerate(sorted(groups.items())):
        page = f"{PAGES}/{number:03d}.html"
        ticks = f"exclude-{UNSAFE.sub('_', name).replace('/', '_')}.txt"
        body = _section(name, items, pictures, "../")
        _write(out / page, PAGE, f"Contact sheet: {name}", items, body, ticks)
        rows.append(f'<tr><td><a href="{page}">{html.escape(name)}</a></td><td>{_counts(items)}</td></tr>')
    _write(out / "contact_sheet.html", INDEX, "Contact sheets", found, f"<table>{''.join(rows)}</table>", "")


def _write(path: Path, page: Template, title: str, found: list[Found], body: str, file: str) -> None:
    text = page.substitute(title=html.escape(title), summary=_counts(found), body=body, file=file)
    atomic_write_text(path, text)


def _counts(found: list[Found]) -> str:
    kept = sum(item.row.status == "kept" for item in found)
    reasons = Counter(item.row.reason for item in found if item.row.status != "kept")
    told = ", ".join(f"{count} {html.escape(reason)}" for reason, count in reasons.most_common())
    files = len({item.row.source for item in found})
    return f"{files} files · {kept} crops kept" + (f" · rejected: {told}" if told else "")


def _section(name: str, found: list[Found], pictures: ThumbnailReader, up: str) -> str:
    kept = [item for item in found if item.row.status == "kept"]
    rejected = [item for item in found if item.row.status != "kept"]
    parts = [f'<h2>{html.escape(name)}</h2><p class="soft">{_counts(found)}</p>']
    for title, items in (("kept", kept), ("rejected", rejected)):
        if items:
            figures = "".join(_figure(item, pictures, up) for item in items)
            parts.append(f'<h3>{title}</h3><div class="grid">{figures}</div>')
    return "".join(parts)


def _figure(item: Found, pictures: ThumbnailReader, up: str) -> str:
    row = item.row
    picture = _picture(pictures.read(item.sheet))
    where = row.crop if row.status == "kept" else row.crop.replace(CROPS, SET_ASIDE, 1)
    if where and picture:
        picture = f'<a href="{up}{quote(where)}">{picture}</a>'
    name = html.escape(row.source.replace("\\", "/").rpartition("/")[2])
    tip = html.escape(f"{row.source}\n{row.axes} {row.shape} {row.dtype}\naxes: {row.axes_source}", quote=True)
    facts = " · ".join(f"<span>{html.escape(text)}</span>" for text in _facts(item) if text)
    lines = [f"<b>{name}</b>", facts]
    if row.reason:
        lines.append(f'<span class="reason">{html.escape(row.reason)}</span> {html.escape(_short(row.detail))}')
    caption = "<br>".join(line for line in lines if line)
    if row.crop:
        checked = " checked" if row.reason == "excluded by hand" else ""
        box = f'<input type="checkbox" data-crop="{html.escape(row.crop, quote=True)}"{checked}>'
        caption = f"<label>{box}<span>{caption}</span></label>"
    state = "" if row.status == "kept" else ' class="rejected"'
    return f'<figure{state} title="{tip}"><div class="frame">{picture}</div><figcaption>{caption}</figcaption></figure>'


def _short(detail: str) -> str:
    """Shorten `same as crops/a/b.png` to the file name, which suffices on a sheet."""
    start, separator, path = detail.partition("same as ")
    return f"{start}{separator}{Path(path).name}" if separator else detail


def _facts(item: Found) -> list[str]:
    row = item.row
    size = f"{row.height}×{row.width}" if row.height != "" else ""
    detail = f"L {float(row.laplacian_variance):.0f}" if row.laplacian_variance != "" else ""
    focus = f"F {float(row.focus):.1f}" if row.focus != "" else ""
    return [row.channel, size, detail, focus]


def _picture(jpeg: bytes) -> str:
    data = base64.b64encode(jpeg).decode()
    return f'<img loading="lazy" alt="" src="data:image/jpeg;base64,{data}">' if jpeg else ""
