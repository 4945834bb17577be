"""Build the documentation site, the README and the paper from `nbs/`, without Quarto.

    python tools/site.py            every page, into _site/
    python tools/site.py --readme   README.md, from nbs/index.ipynb
    python tools/site.py --check    exit 1 if README.md is not what --readme would write
    python tools/site.py --paper    the leaf study as one HTML file and as PDF, into _paper/; or another page, such as studies/transfer.ipynb

nbdev prepares the notebooks (tools/pages.py), pandoc renders them. The demo runs a released student in the browser: the first build
fetches its engine by npm.
"""
import argparse, html, json, posixpath, shutil, sys
from pathlib import Path
from urllib.parse import urlsplit

from kd_leaf.deploy.page import make_page
from kd_leaf.deploy.released import released_onnx
from nbdev.config import get_config
from pages import (MARKDOWN, NBS, ROOT, code_spans, page_path, pandoc, parse, processed, read_page, relink, repo_path,
                   site_path, walk)

HERE = Path(__file__).parent
GROUPS = {'start': 'Start', 'tutorials': 'Tutorials', 'studies': 'Studies', 'core': 'Core', 'data': 'Data', 'models': 'Models',
          'distill': 'Distill', 'ensemble': 'Ensemble', 'evaluate': 'Evaluate', 'study': 'Study', 'report': 'Report',
          'deploy': 'Deploy', 'benchmarks': 'Benchmarks'}  # folder: heading of its pages in the list, in reading order
FIRST = 'index', 'all', 'run_all', 'leaf'  # of its folder; the others by their file names
DEMO = 'demo.html'  # a page that is no notebook
IMAGES = {'.png', '.jpg', '.jpeg', '.svg', '.gif', '.webp'}


def group(page):
    "Which part of the list of pages a page stands in: its folder"
    folder = page.src.relative_to(NBS).parent.as_posix()
    return folder if folder != '.' else 'core' if page.src.stem in ('00_core', '01_checks', '02_devices', '03_style') else 'start'


def reading_order(page):
    stem = page.src.stem
    return list(GROUPS).index(group(page)), FIRST.index(stem) if stem in FIRST else len(FIRST), stem


def relative(page, path):
    "`path`, below the site's root, as `page` must call it"
    return posixpath.relpath(path, posixpath.dirname(page.name) or '.')


def copy_image(file, out):
    "Copy an image of the repository to the site; returns its path there"
    dest = out/file.removeprefix('nbs/')
    dest.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT/file, dest)
    return dest.relative_to(out).as_posix()


def site_link(page, pages, out, cfg):
    "A function from a notebook's link to the same place on the site"
    def to(url, image):
        if urlsplit(url).scheme and not url.startswith(cfg.doc_url): return url
        path, _, frag = url.partition('#')
        name = page_path(site_path(page, path, cfg))
        if name in page.media or name == DEMO: return relative(page, name)
        if name in pages:
            there = pages[name]  # a method without an entry of its own is found in its class's
            if frag not in there.ids and frag.rpartition('.')[0] in there.ids: frag = frag.rpartition('.')[0]
            if frag.rpartition('.')[2].startswith('_') and frag not in there.ids: return None  # nbdev links private names too
            return ('' if there is page and frag else relative(page, name)) + (f'#{frag}' if frag else '')
        file = repo_path(page, path)
        if file is None: return url
        if image or Path(file).suffix in IMAGES: return relative(page, copy_image(file, out))
        return f'{cfg.git_url}/{"tree" if (ROOT/file).is_dir() else "blob"}/{cfg.branch}/{file}'
    return to


def nav(pages, here):
    "The list of pages, in groups; those of the library are folded unless `here` stands in them"
    parts = {}
    for p in pages.values():
        now = ' aria-current="page"' if p is here else ''
        parts.setdefault(group(p), []).append(f'<li><a href="{relative(here, p.name)}"{now}>{code_spans(p.title)}</a></li>')
    opened = {'start', 'tutorials', 'studies', group(here)}
    fold = lambda key, items: f'<details{" open" * (key in opened)}><summary>{GROUPS[key]}</summary><ul>{"".join(items)}</ul></details>'
    return '\n'.join(fold(key, items) for key, items in parts.items())


def near(pages, here):
    "Links to the page before and the page after"
    order = list(pages.values())
    at = order.index(here)
    link = lambda p, rel, word: f'<a rel="{rel}" href="{relative(here, p.name)}"><small>{word}</small>{code_spans(p.title)}</a>'
    return (link(order[at-1], 'prev', 'Previous') if at else '') + (link(order[at+1], 'next', 'Next') if at+1 < len(order) else '')


def open_in(notebook, cfg):
    "Links to run the notebook elsewhere and to read its source; in Colab only a tutorial, which installs the package there"
    where = f'{cfg.user}/{cfg.repo}'
    links = {'Open in Colab': f'https://colab.research.google.com/github/{where}/blob/{cfg.branch}/{notebook}',
             'Open in Binder': f'https://mybinder.org/v2/gh/{where}/{cfg.branch}?labpath={notebook}',
             'Source notebook': f'{cfg.git_url}/blob/{cfg.branch}/{notebook}'}
    if not notebook.startswith('nbs/tutorials/'): del links['Open in Colab']
    if notebook == 'nbs/index.ipynb': del links['Open in Binder']  # its text has that link
    return '\n'.join(f'<a href="{url}">{text}</a>' for text, url in links.items())


def scroll_tables(tree):
    "Put each table into a box of its own that scrolls"
    def fix(x):
        if x['t'] == 'Table': return [{'t': 'Div', 'c': [['', ['scroll'], [['tabindex', '0']]], [x]]}]
        if x['t'] == 'RawBlock' and '<table' in x['c'][1]:
            x['c'][1] = f'<div class="scroll" tabindex="0">{x["c"][1]}</div>'
    walk(tree, fix)


def caption_of(blocks, i):
    "Where the caption of a figure or table stands, or None: in itself, or for a table in a line in bold right above it"
    above = blocks[i-1]['c'] if i and blocks[i-1]['t'] == 'Para' else []
    if blocks[i]['t'] == 'Table' and [x['t'] for x in above] == ['Strong']: return above[0]
    return next(iter(blocks[i]['c'][1][1]), None)


def number_captions(blocks, counts):
    "Number the captions of figures and tables"
    for i, x in enumerate(blocks):
        if x['t'] == 'Div': number_captions(x['c'][1], counts)
        if x['t'] in counts and (caption := caption_of(blocks, i)):
            counts[x['t']] += 1
            caption['c'] = [{'t': 'Str', 'c': f'{x["t"]}\N{NO-BREAK SPACE}{counts[x["t"]]}.'}, {'t': 'Space'}, *caption['c']]


def words(x):
    "The text of a part of pandoc's tree"
    if isinstance(x, list): return ''.join(map(words, x))
    if not isinstance(x, dict): return ''
    if x['t'] == 'Str': return x['c']
    if x['t'] == 'Code': return x['c'][1]
    if x['t'] in ('Space', 'SoftBreak', 'LineBreak'): return ' '
    return words(x.get('c', [])) + ('' if x['t'] in ('Emph', 'Strong', 'Link', 'Span') else ' ')


def sections(page):
    "What search looks through: page, heading, address, text of each section; code is left out"
    found = [[page.title, '', page.name, page.about]]
    def read(blocks):
        for x in blocks:
            if x['t'] == 'Div': read(x['c'][1])
            elif x['t'] == 'Header': found.append([page.title, words(x['c'][2]), f'{page.name}#{x["c"][1][0]}', ''])
            elif x['t'] != 'CodeBlock': found[-1][3] += ' ' + ' '.join(words(x).split())
    read(page.tree['blocks'])
    return found


def empty_folder(out):
    "Make `out` an empty folder, unless something other than a site stands in it"
    if out.exists() and any(out.iterdir()):
        if not (out/'site.css').exists(): raise ValueError(f'{out} holds something other than a site: name an empty or a new folder')
        shutil.rmtree(out)
    (out/'images').mkdir(parents=True)


def build(out):
    "The whole site into folder `out`; returns its pages, `{path: page}`"
    out, cfg = Path(out), get_config(ROOT)
    pages = sorted((read_page(*o) for o in processed()), key=reading_order)
    pages = {p.name: parse(p, f'::: {{.lead}}\n{p.about}\n:::' if p.about else '') for p in pages}
    empty_folder(out)
    for file in ('site.css', 'site.js'): shutil.copyfile(HERE/file, out/file)
    index = json.dumps([s for p in pages.values() for s in sections(p)], ensure_ascii=False)
    (out/'search-index.js').write_text(f'kdSections({index});\n', encoding='utf-8')
    for page in pages.values():
        for name, data in page.media.items(): (out/name).write_bytes(data)
        relink(page.tree['blocks'], site_link(page, pages, out, cfg))
        number_captions(page.tree['blocks'], dict(Figure=0, Table=0))
        scroll_tables(page.tree['blocks'])
        (out/page.name).parent.mkdir(exist_ok=True)
        (out/page.name).write_text(render(page, pages, cfg), encoding='utf-8')
    make_page(released_onnx(), dest=out/DEMO)
    return pages


def render(page, pages, cfg):
    "The HTML of a page"
    notebook = page.src.relative_to(ROOT).as_posix()
    values = dict(title=code_spans(page.title), plain=html.escape(page.title.replace('`', '')), about=html.escape(page.about),
                  nav=nav(pages, page), root=relative(page, '.'), project=cfg.lib_name, repo=cfg.git_url,
                  source=f'{cfg.git_url}/blob/{cfg.branch}/{notebook}', open=open_in(notebook, cfg), near=near(pages, page))
    variables = [a for k, v in values.items() for a in ('-V', f'{k}={v}')]
    return pandoc(json.dumps(page.tree), '-f', 'json', '-t', 'html5', '--standalone', '--mathml', '--toc', '--toc-depth=3',
                  '--template', str(HERE/'site.html'), *variables)


def readme():
    "The README's text, and the images it shows by path"
    (page,) = [read_page(*o) for o in processed('index.ipynb')]
    parse(page, f'> {page.about}' if page.about else '', MARKDOWN + '-implicit_figures')

    def to(url, image):
        path, _, frag = url.partition('#')
        if path[1:] in page.media: return f'nbs{path}'
        if urlsplit(url).scheme or not path: return url
        return file + (f'#{frag}' if frag else '') if (file := repo_path(page, path)) else url

    def plain(x):  # GitHub has no use for the site's wrappers and attributes
        if x['t'] in ('Div', 'Span'): return x['c'][1]
        if x['t'] == 'Link': x['c'][0] = ['', [], []]
        if x['t'] == 'Image':
            if alt := dict(x['c'][0][2]).get('alt'): x['c'][1] = [{'t': 'Str', 'c': alt}]
            x['c'][0] = ['', [], []]
        if x['t'] == 'Header': x['c'][1] = ['', [], []]
        if x['t'] == 'CodeBlock': x['c'][0][1] = [c for c in x['c'][0][1] if c != 'output']
        if x['t'] == 'RawBlock' and '<table' in x['c'][1]:
            table = json.loads(pandoc(x['c'][1], '-f', 'html', '-t', 'json'))['blocks']
            walk(table, plain)
            return table
    relink(page.tree['blocks'], to)
    walk(page.tree['blocks'], plain)
    body = pandoc(json.dumps(page.tree), '-f', 'json', '-t', 'gfm', '--wrap=preserve')
    note = '<!-- Made from nbs/index.ipynb by tools/site.py: edit the notebook. -->'
    return f'# {page.title}\n\n{note}\n\n{body}', {f'nbs/{k}': v for k, v in page.media.items()}


def main():
    "The command line"
    parser = argparse.ArgumentParser(description='Build the documentation site, the README or the paper')
    parser.add_argument('--out', default='_site', help='folder to build the site in; what it holds is replaced')
    parser.add_argument('--readme', action='store_true', help='write README.md instead')
    parser.add_argument('--check', action='store_true', help='only say, by exit status, whether README.md is up to date')
    parser.add_argument('--paper', nargs='?', const='studies/leaf.ipynb', metavar='PAGE',
                        help='write a page, the leaf study by default, as one HTML file and as PDF, into _paper/')
    args, file = parser.parse_args(), ROOT/'README.md'
    if args.paper:
        from paper import paper
        return print(*paper(ROOT/'_paper', args.paper))
    if not (args.readme or args.check): return print(f'{len(build(args.out))} pages in {args.out}/')
    text, images = readme()
    if args.check:
        stale = not file.exists() or file.read_text(encoding='utf-8') != text or not all((ROOT/p).exists() for p in images)
        sys.exit('README.md is not up to date: python tools/site.py --readme' if stale else 0)
    for path, data in images.items():
        (ROOT/path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT/path).write_bytes(data)
    file.write_text(text, encoding='utf-8', newline='\n')


if __name__ == '__main__': main()  # nbdev's workers import this file too
