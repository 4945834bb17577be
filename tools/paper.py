"""A study's page as one HTML file that needs no other, and as PDF by Typst: code is left out, it stands in the notebook."""
import json
from pathlib import Path
from urllib.parse import urlsplit

from nbdev.config import get_config
from pages import ROOT, page_path, pandoc, parse, processed, read_page, relink, repo_path, site_path, walk

HERE = Path(__file__).parent


def outside_link(page, cfg):
    "A function from a notebook's link to the same place on the site or in the repository"
    def to(url, image):
        path, _, frag = url.partition('#')
        if image: return url.removeprefix('/')
        if urlsplit(url).scheme or not path: return url
        if path.endswith('.ipynb'): return cfg.doc_url + page_path(site_path(page, path, cfg)) + (f'#{frag}' if frag else '')
        return f'{cfg.git_url}/tree/{cfg.branch}/{file}' if (file := repo_path(page, path)) else url
    return to


def for_print(x):
    "Leave out code, boxes and links within the page"
    if x['t'] == 'CodeBlock' and 'python' in x['c'][0][1]: return []
    if x['t'] == 'Div': return x['c'][1]
    if x['t'] == 'Link' and x['c'][2][0].startswith('#'): return x['c'][1]


def paper(out, name='studies/leaf.ipynb'):
    "Write the HTML file and the PDF into folder `out`; returns their paths"
    import typst
    out, cfg, (page,) = Path(out), get_config(ROOT), [read_page(*o) for o in processed(name)]
    parse(page, '')
    (out/'images').mkdir(parents=True, exist_ok=True)
    for file, data in page.media.items(): (out/file).write_bytes(data)
    relink(page.tree['blocks'], outside_link(page, cfg))
    walk(page.tree['blocks'], for_print)
    tree, stem = json.dumps(page.tree), out/cfg.lib_name
    meta = ['--metadata', f'title={page.title}', '--metadata', f'subtitle={page.about}']
    one_file = ['--mathml', '--embed-resources', '--resource-path', str(out), '--css', str(HERE/'paper.css')]
    html_text = pandoc(tree, '-f', 'json', '-t', 'html5', '--standalone', *one_file, *meta)
    source = pandoc(tree, '-f', 'json', '-t', 'typst', '--standalone', '--template', str(HERE/'paper.typ'), *meta)
    files = [stem.with_suffix(s) for s in ('.html', '.typ', '.pdf')]
    files[0].write_text(html_text, encoding='utf-8')
    files[1].write_text(source, encoding='utf-8')
    files[2].write_bytes(typst.compile(str(files[1]), root=str(out)))
    return [files[0], files[2]]
