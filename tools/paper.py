"""A study's page as one HTML file that needs no other, and as PDF by Typst: code is left out, it stands in the notebook."""
import copy, json, re, tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pandas as pd
from nbdev.config import get_config
from pages import ROOT, page_path, pandoc, parse, processed, read_page, relink, repo_path, site_path, walk

HERE = Path(__file__).parent
CITED = tomllib.loads((HERE/'references.toml').read_text(encoding='utf-8'))


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


def caption_tables(blocks):
    "A line in bold right above a table becomes its caption"
    for i in reversed(range(1, len(blocks))):
        above = blocks[i-1]
        if blocks[i]['t'] != 'Table' or above['t'] != 'Para' or [x['t'] for x in above['c']] != ['Strong']: continue
        blocks[i]['c'][1][1] = [{'t': 'Plain', 'c': above['c'][0]['c']}]
        del blocks[i-1]


def number_figures(blocks):
    "Numbers before the captions of figures and tables, where no typesetter writes them"
    counts = dict(Figure=0, Table=0)
    for x in blocks:
        if x['t'] not in counts or not x['c'][1][1]: continue
        counts[x['t']] += 1
        caption = x['c'][1][1][0]['c']
        caption[:0] = [{'t': 'Str', 'c': f'{x["t"]}\N{NO-BREAK SPACE}{counts[x["t"]]}.'}, {'t': 'Space'}]


def cite(blocks):
    "A number after each link to an article, and the list of references at the end; `KeyError` for one that is not listed"
    urls = []
    def find(x):
        if x['t'] != 'Link' or not (m := re.search(r'(?:arxiv\.org/abs/|doi\.org/)(.+)', x['c'][2][0])): return
        if x['c'][2][0] not in urls: urls.append(x['c'][2][0])
        if m[1] not in CITED: raise KeyError(f'{m[1]} is cited, and not in tools/references.toml: add it')
    for b in blocks: walk([b], find)
    urls.sort(key=[*dict.fromkeys(re.findall(r'https?://[^"]+', json.dumps(blocks)))].index)
    def number(x):
        if x['t'] == 'Link' and x['c'][2][0] in urls: return [x, {'t': 'Str', 'c': f'\N{NO-BREAK SPACE}[{urls.index(x["c"][2][0])+1}]'}]
    walk(blocks, number)
    entry = lambda url: CITED[re.search(r'(?:abs/|doi\.org/)(.+)', url)[1]]
    text = '\n'.join(f'{k}. {entry(url)}. <{url}>' for k, url in enumerate(urls, 1))
    if urls: blocks += json.loads(pandoc(f'## References\n\n{text}', '-f', 'markdown', '-t', 'json'))['blocks']


def about(page):
    "Authors, and the day on which the newest record of the study was made"
    authors = re.findall(r'^  - name: (.+)$', (ROOT/'CITATION.cff').read_text(encoding='utf-8'), flags=re.M)
    made = pd.read_csv(ROOT/f'results/{Path(page.name).stem}/runs.csv').date.max()[:10]
    return [f'author={", ".join(authors)}', f'date={made}']


def paper(out, name='studies/leaf.ipynb'):
    "Write the HTML file and the PDF into folder `out`; returns their paths"
    import typst
    out, cfg, (page,) = Path(out), get_config(ROOT), [read_page(*o) for o in processed(name)]
    parse(page, '')
    (out/'images').mkdir(parents=True, exist_ok=True)
    for file, data in page.media.items(): (out/file).write_bytes(data)
    relink(page.tree['blocks'], outside_link(page, cfg))
    walk(page.tree['blocks'], for_print)
    caption_tables(page.tree['blocks'])
    cite(page.tree['blocks'])
    numbered = copy.deepcopy(page.tree)
    number_figures(numbered['blocks'])
    tree, stem = json.dumps(page.tree), out/(cfg.lib_name if name == 'studies/leaf.ipynb' else Path(name).stem)
    meta = [o for m in (f'title={page.title}', f'subtitle={page.about}', *about(page)) for o in ('--metadata', m)]
    one_file = ['--mathml', '--embed-resources', '--resource-path', str(out), '--css', str(HERE/'paper.css')]
    html_text = pandoc(json.dumps(numbered), '-f', 'json', '-t', 'html5', '--standalone', *one_file, *meta)
    source = pandoc(tree, '-f', 'json', '-t', 'typst', '--standalone', '--template', str(HERE/'paper.typ'), *meta)
    files = [stem.with_suffix(s) for s in ('.html', '.typ', '.pdf')]
    files[0].write_text(html_text, encoding='utf-8')
    files[1].write_text(source, encoding='utf-8')
    files[2].write_bytes(typst.compile(str(files[1]), root=str(out)))
    return [files[0], files[2]]
