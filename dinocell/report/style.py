"""Style sheet of the report pages."""

CSS = """
:root{--page:#fbfbfa;--card:#fff;--text:#1f2328;--soft:#656d76;--line:#dfe3e8;--accent:#2563c9;--code:#eff1f4}
@media (prefers-color-scheme:dark){
:root{--page:#14171b;--card:#1b1f24;--text:#e3e7ec;--soft:#98a1ab;--line:#31373f;--accent:#7cb0ff;--code:#252a31}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--text);
font:16px/1.6 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:60rem;margin:0 auto;padding:2rem 1.1rem 4rem}
h1{font-size:clamp(1.5rem,5vw,2.1rem);line-height:1.2;margin:0;letter-spacing:-.015em}
h2{font-size:1.3rem;line-height:1.3;margin:2.6rem 0 .6rem;padding-top:1rem;border-top:1px solid var(--line)}
h3{font-size:1.05rem;margin:1.8rem 0 .4rem}
p{margin:.6rem 0;max-width:44rem}
a{color:var(--accent)}
.subtitle,.note,figcaption,caption{color:var(--soft)}
.subtitle{margin:.4rem 0 0;font-size:1.05rem}
.note,figcaption{font-size:.875rem;line-height:1.45}
nav{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;margin:1.2rem 0 0;font-size:.925rem}
nav a{text-decoration:none;padding:.2rem 0}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:.875em}
code{background:var(--code);border-radius:4px;padding:.1em .3em;overflow-wrap:anywhere}
pre{background:var(--code);border-radius:8px;padding:.8rem 1rem;overflow-x:auto;line-height:1.45}
pre code{background:none;padding:0;overflow-wrap:normal}
.scroll{overflow-x:auto;margin:1rem 0;border:1px solid var(--line);border-radius:8px;background:var(--card)}
table{border-collapse:collapse;width:100%;font-size:.925rem;font-variant-numeric:tabular-nums}
caption{text-align:left;padding:.6rem .8rem 0;font-size:.875rem}
th,td{padding:.45rem .8rem;text-align:left;white-space:nowrap;border-bottom:1px solid var(--line)}
tbody tr:last-child td{border-bottom:0}
th{font-weight:600;color:var(--soft);font-size:.85rem}
.n{text-align:right}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr));gap:.7rem;margin:1.1rem 0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.7rem .9rem}
.value{font-size:1.55rem;font-weight:650;line-height:1.25;letter-spacing:-.01em;font-variant-numeric:tabular-nums}
.name{color:var(--soft);font-size:.85rem;line-height:1.35}
figure{margin:1rem 0}
img{display:block;max-width:100%;height:auto;border-radius:6px}
figcaption{margin-top:.4rem;max-width:44rem}
.chart{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.7rem;margin:1rem 0}
.chart{max-width:44rem}.chart figure{margin:0}.chart img{width:100%;border-radius:0}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(13rem,100%),1fr));gap:.9rem;margin:1rem 0}
.gallery figure{margin:0}.gallery img{width:100%}
@media print{.scroll,.tile,.chart{break-inside:avoid}}
"""
