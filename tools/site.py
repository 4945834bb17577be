"""Build the documentation site, and the README, from `nbs/`: no Quarto, no network.

    python tools/site.py            every page, into _site/
    python tools/site.py --readme   README.md, from nbs/index.ipynb
    python tools/site.py --check    exit 1 if README.md is not what --readme would write
    python tools/site.py --paper    the leaf study as one HTML file and as PDF, into _paper/

nbdev prepares the notebooks (it runs the exported cells, those with an import, and those marked `exec_doc`), pandoc renders them.
"""
import argparse, ast, html, json, re, shutil, subprocess, sys
from base64 import b64decode
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pypandoc
from fastcore.nbio import cell_frontmatter, md_frontmatter, mk_cell, read_nb
from nbdev.config import get_config, nbpath2html
from nbdev.serve import proc_nbs

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT/'nbs'
PARTS = {0: 'Library', 20: 'Tutorials', 30: 'Experiments', 40: 'Studies', 50: 'Comparisons'}  # by first number
# Markdown as Jupyter and GitHub read it, so that a page says here what it says there: "~600", "@patch", a list right below its sentence.
MARKDOWN = ('markdown-smart-citations-subscript-superscript-blank_before_header-blank_before_blockquote'
            '+lists_without_preceding_blankline+autolink_bare_uris')
MIMES = 'text/markdown text/html image/svg+xml image/png image/jpeg text/latex text/plain'.split()
IMAGES = {'.png', '.jpg', '.jpeg', '.svg', '.gif', '.webp'}


def pandoc(text, *args):
    "`text` through pandoc"
    return subprocess.run([pypandoc.get_pandoc_path(), *args], input=text, capture_output=True, text=True, check=True).stdout


# --- notebooks, as nbdev prepares them

def processed(only=''):
    "Source and processed notebook of every page, or of `only` one, in reading order"
    with chdir(ROOT):
        if only: (ROOT/'_proc'/only).unlink(missing_ok=True)
        cache = proc_nbs(file_glob=only, force=not only)
    srcs = sorted(NBS.glob(only or '[!._]*.ipynb'), key=lambda p: (p.stem != 'index', p.name))
    nbs = [(src, read_nb(src), read_nb(cache/src.name)) for src in srcs]
    check_titles(nbs)
    return nbs


def check_titles(nbs):
    "Refuse what nbdev would drop without a word: text in the title's cell, which it reads as front matter only"
    wrong = []
    for src, nb, _ in nbs:
        cell = next((c.source for c in nb.cells if c.cell_type == 'markdown' and md_frontmatter(c.source)), '')
        lines = [l for l in cell.splitlines() if l.strip() and not re.match(r'# [^#]|- \S+: ', l)]
        if not cell: wrong.append(f'{src.name} has no "# title"')
        elif len(lines) > 1 or (lines and not lines[0].startswith('> ')): wrong.append(f'{src.name} has more in it')
    if wrong: raise ValueError('the first markdown cell must hold "# Title", one "> line", and nothing else: ' + '; '.join(wrong))


def constants(nb):
    "Ids of exported cells that assign public names, and those names with the code: `show_doc` knows functions and classes only"
    for cell in nb.cells:
        if cell.cell_type != 'code' or 'export' not in cell.directives or 'hide' in cell.directives: continue
        found = {}
        for node in ast.parse(cell.source).body:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
            names = [t.id for t in targets if isinstance(t, ast.Name) and not t.id.startswith('_')]
            found |= {name: ast.get_source_segment(cell.source, node) for name in names}
        if found: yield cell.id, found


def with_constants(src_nb, nb):
    "Cells of `nb`, each exported constant shown at its place: after the last cell before it that nbdev has kept"
    cells, order = list(nb.cells), [c.id for c in src_nb.cells]
    for cid, found in reversed(list(constants(src_nb))):
        before = set(order[:order.index(cid)])
        at = max((i + 1 for i, c in enumerate(cells) if c.get('id') in before), default=len(cells))
        text = '\n\n'.join(doc_entry(f'### {name}\n\n' + fence(code, '.python')) for name, code in found.items())
        cells.insert(at, mk_cell(text, 'markdown'))
    return cells


# --- cells to markdown

def fence(text, attrs):
    "`text` as a code block, whatever backticks stand in it"
    ticks = '`' * max([3] + [len(m) + 1 for m in re.findall('`{3,}', text)])
    return f'{ticks} {{{attrs}}}\n{text}\n{ticks}'


def doc_entry(text):
    "What `show_doc` wrote: its heading first (pandoc then lists it in the contents), as code, with the name for anchor"
    m = re.search(r'^(#+) (\S+)$', text, flags=re.M)
    if not m: return text  # a warning, say
    return f'::: {{.doc}}\n{m[1]} `{m[2]}` {{#{m[2]} .name}}\n\n{text[:m.start()].strip().lstrip("-")}\n\n{text[m.end():].strip().replace("__main__.", "")}\n\n:::'


def options(source):
    "Quarto's `#| key: value` lines of a code cell, and the code without them"
    return (dict(re.findall(r'^#\|\s*([\w-]+):\s*(.*?)\s*$', source, flags=re.M)),
            re.sub(r'^#\|.*\n?', '', source, flags=re.M).strip('\n'))


def output_md(out, opts, page):
    "One output of a cell as markdown; pictures go to `page.media`"
    if out.output_type == 'error': return fence(f'{out.ename}: {out.evalue}', '.output .error')
    if out.output_type == 'stream':
        text = re.sub(r'^.*\r(?!\n)', '', ''.join(out.text), flags=re.M)  # of a progress bar only the end is kept
        return fence(text.rstrip(), '.output') if text.strip() else ''
    mime = next((m for m in MIMES if m in out.data), None)
    if mime is None: return ''
    data = ''.join(out.data[mime])
    if mime == 'text/html':
        data = re.sub(r'<(style|script)\b.*?</\1>', '', data, flags=re.S)
        return fence(data.strip(), '=html') if data.strip() else ''
    if mime.startswith('image/'):
        name = f'images/{page.src.stem}-{len(page.media) + 1}.{mime[6:].split("+")[0]}'
        page.media[name] = data.encode() if 'svg' in mime else b64decode(data)
        caption = opts.get('fig-cap', '').strip('"')
        return f'![{caption}]({name})' + ('' if caption else f'{{alt="{opts.get("fig-alt", "output of the code above").strip(chr(34))}"}}')
    if mime == 'text/markdown': return re.sub(r'(?<=\d) (?=±)|(?<=±) |(?<=\d,) (?=[+-]\d)', '\N{NO-BREAK SPACE}', data)  # "0.28 ± 0.01" and "[-0.01, +0.02]" on one line each
    return data if mime == 'text/latex' else fence(data, '.output')


def cell_md(cell, page):
    "One cell as markdown"
    if cell.cell_type == 'markdown': return '' if cell.source.startswith('<!-- WARNING') else cell.source
    if cell.cell_type != 'code': return ''
    opts, code = options(cell.source)
    if opts.get('include') == 'false': return ''
    outs = [] if opts.get('output') == 'false' else [output_md(o, opts, page) for o in cell.get('outputs') or []]
    if re.match(r'show_doc\b', code): return '\n\n'.join(map(doc_entry, filter(None, outs)))
    shown = code and opts.get('echo') != 'false'
    return '\n\n'.join(filter(None, [fence(code, '.python') if shown else '', *outs]))


# --- pages: pandoc's document tree, its anchors and links put right

def walk(x, fix):
    "Every element of a pandoc tree through `fix`, which changes it in place, or returns a list to stand instead of it"
    if isinstance(x, dict):
        for v in x.values(): walk(v, fix)
    elif isinstance(x, list):
        for i in reversed(range(len(x))):
            walk(x[i], fix)
            if isinstance(x[i], dict) and 't' in x[i] and (new := fix(x[i])) is not None: x[i:i + 1] = new


def read_page(src, src_nb, nb):
    "A page: title, description, pandoc tree, pictures, anchors"
    page = SimpleNamespace(src=src, name=nbpath2html(src).name, media={}, ids=set())
    head = next(cell_frontmatter(c.source) for c in nb.cells if c.cell_type == 'raw')
    page.title, page.about = head['title'], head.get('description', '')
    page.text = '\n\n'.join(filter(None, (cell_md(c, page) for c in with_constants(src_nb, nb))))
    return page


def parse(page, top, reader=MARKDOWN):
    "Put `top` and the page's text into a tree, and give each heading one anchor that is its own"
    page.tree = json.loads(pandoc(f'{top}\n\n{page.text}', '-f', reader, '-t', 'json', '--columns=9999'))  # else long rows fix a table's widths
    heads = []
    walk(page.tree['blocks'], lambda x: heads.insert(0, x['c']) if x['t'] == 'Header' else None)
    names = {h[1][0] for h in heads if 'name' in h[1][1]}
    reserved = names | {n.lower() for n in names}
    exact = {}  # heading's anchor: the name as it is written, where that differs
    for h in heads:
        anchor, h[0] = h[1][0], max(h[0], 2)  # the title is the page's one h1
        if 'name' in h[1][1] and anchor not in page.ids:
            low = anchor.lower()  # so nbdev's own links call it
            if low not in names | page.ids: h[1][0], exact[low] = low, anchor
            page.ids |= {anchor, low}
        else:
            n = 0
            while h[1][0] in reserved | page.ids: h[1][0], n = f'{anchor}-{n + 1}', n + 1
            page.ids.add(h[1][0])
    # Beside the heading and not in it: pandoc copies what is in it to the table of contents.
    beside = lambda name: {'t': 'Plain', 'c': [{'t': 'Span', 'c': [[name, ['exact'], []], []]}]}
    walk(page.tree['blocks'], lambda x: [x, beside(exact[x['c'][1][0]])] if x['t'] == 'Header' and x['c'][1][0] in exact else None)
    return page


def relink(tree, to):
    "Every link and picture of the tree, raw HTML too, through `to(url, is_picture)`; a link to None becomes plain text"
    raw = lambda m: f'{m[1]}{to(m[2], m[1].startswith("src")) or "#"}"'
    def fix(x):
        if x['t'] in ('Link', 'Image'):
            url = x['c'][2][0] = to(x['c'][2][0], x['t'] == 'Image')
            if url is None: return x['c'][1]
        if x['t'] in ('RawInline', 'RawBlock'): x['c'][1] = re.sub(r'\b((?:href|src)=")([^"]+)"', raw, x['c'][1])
    walk(tree, fix)


def repo_path(path):
    "Path in the repository of the file that a notebook calls `path`, or None"
    file = (NBS/unquote(path)).resolve()
    return file.relative_to(ROOT).as_posix() if path and file.exists() and file.is_relative_to(ROOT) else None


def site_link(page, pages, out, cfg):
    "A function from a notebook's link to the same place on the site"
    def to(url, picture):
        url = re.sub(f'^{re.escape(cfg.doc_url)}', '', url) or 'index.html'
        if urlsplit(url).scheme or url.startswith('//'): return url
        path, _, frag = url.partition('#')
        if path.endswith('.ipynb') and nbpath2html(path).name in pages: path = nbpath2html(path).name
        there = pages.get(path) if path else page
        if there:  # a method without an entry of its own is found in its class's
            if frag not in there.ids and frag.rpartition('.')[0] in there.ids: frag = frag.rpartition('.')[0]
            if frag.rpartition('.')[2].startswith('_') and frag not in there.ids: return None  # nbdev links private names too
            return path + (f'#{frag}' if frag else '')
        file = None if path in page.media else repo_path(path)
        if file is None: return url
        if not (picture or Path(file).suffix in IMAGES):
            return f'{cfg.git_url}/{"tree" if (ROOT/file).is_dir() else "blob"}/{cfg.branch}/{file}'
        dest = out/file.removeprefix('nbs/')
        dest.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT/file, dest)
        return dest.relative_to(out).as_posix()
    return to


def code_spans(text):
    "Plain text to HTML, with its `backticks`"
    return re.sub('`([^`]+)`', r'<code>\1</code>', html.escape(text))


def nav(pages, here):
    "The list of pages, in parts by number"
    items, part = [], None
    for p in pages.values():
        number = re.match(r'\d+', p.src.name)
        new = PARTS[max(k for k in PARTS if k <= int(number[0]))] if number else 'Run' if items else None
        if new and new != part: items.append(f'<li class="part">{new}</li>')
        part = new
        now = ' aria-current="page"' if p is here else ''
        items.append(f'<li><a href="{p.name}"{now}>{code_spans(p.title)}</a></li>')
    return '<ul>' + '\n'.join(items) + '</ul>'


def build(out):
    "The whole site into folder `out`; returns its pages, `{file name: page}`"
    out, cfg = Path(out), get_config(ROOT)
    pages = [read_page(*o) for o in processed()]
    pages = {p.name: parse(p, f'::: {{.lead}}\n{p.about}\n:::' if p.about else '') for p in pages}
    if out.exists() and any(out.iterdir()):
        if not (out/'site.css').exists(): raise ValueError(f'{out} holds something other than a site: name an empty or a new folder')
        shutil.rmtree(out)
    (out/'images').mkdir(parents=True)
    shutil.copyfile(Path(__file__).with_name('site.css'), out/'site.css')
    for page in pages.values():
        for name, data in page.media.items(): (out/name).write_bytes(data)
        relink(page.tree['blocks'], site_link(page, pages, out, cfg))
        values = dict(title=code_spans(page.title), plain=html.escape(page.title.replace('`', '')), about=html.escape(page.about), nav=nav(pages, page),
                      project=cfg.lib_name, repo=cfg.git_url, source=f'{cfg.git_url}/blob/{cfg.branch}/nbs/{page.src.name}')
        text = pandoc(json.dumps(page.tree), '-f', 'json', '-t', 'html5', '--standalone', '--mathml', '--toc', '--toc-depth=3',
                      '--template', str(Path(__file__).with_name('site.html')), *[a for k, v in values.items() for a in ('-V', f'{k}={v}')])
        (out/page.name).write_text(text, encoding='utf-8')
    return pages


def readme():
    "The README's text, and the pictures it shows by path"
    cfg, (page,) = get_config(ROOT), [read_page(*o) for o in processed('index.ipynb')]
    parse(page, f'> {page.about}' if page.about else '', MARKDOWN + '-implicit_figures')

    def to(url, picture):
        path, _, frag = url.partition('#')
        if urlsplit(url).scheme or not path: return url
        if path in page.media: return f'nbs/{path}'
        if (file := repo_path(path)): return file + (f'#{frag}' if frag else '')
        return cfg.doc_url + url if path.endswith('.html') else url

    def plain(x):  # GitHub has no use for the site's wrappers and attributes
        if x['t'] in ('Div', 'Span'): return x['c'][1]
        if x['t'] == 'Link': x['c'][0] = ['', [], []]
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


def paper(out, name='40_leaf.ipynb'):
    "A study's page as one HTML file that needs no other, and as PDF by Typst: code is left out, it stands in the notebook"
    import typst
    out, cfg, (page,) = Path(out), get_config(ROOT), [read_page(*o) for o in processed(name)]
    parse(page, '', MARKDOWN + '-implicit_figures')
    (out/'images').mkdir(parents=True, exist_ok=True)
    for file, data in page.media.items(): (out/file).write_bytes(data)

    def to(url, picture):
        path, _, frag = url.partition('#')
        if urlsplit(url).scheme or picture or not path: return url
        if path.endswith('.ipynb'): return f'{cfg.doc_url}/{nbpath2html(Path(path)).name}' + (f'#{frag}' if frag else '')
        return f'{cfg.git_url}/tree/{cfg.branch}/{file}' if (file := repo_path(path)) else url

    def plain(x):
        if x['t'] == 'CodeBlock' and 'python' in x['c'][0][1]: return []
        if x['t'] == 'Div': return x['c'][1]
        if x['t'] == 'Link' and x['c'][2][0].startswith('#'): return x['c'][1]
    relink(page.tree['blocks'], to)
    walk(page.tree['blocks'], plain)
    tree, stem = json.dumps(page.tree), cfg.lib_name
    meta = ['--metadata', f'title={page.title}', '--metadata', f'subtitle={page.about}']
    html_text = pandoc(tree, '-f', 'json', '-t', 'html5', '--standalone', '--mathml', '--embed-resources', '--resource-path', str(out), '--css', str(Path(__file__).with_name('paper.css')), *meta)
    (out/f'{stem}.html').write_text(html_text, encoding='utf-8')
    source = pandoc(tree, '-f', 'json', '-t', 'typst', '--standalone', '--template', str(Path(__file__).with_name('paper.typ')), *meta)
    (out/f'{stem}.typ').write_text(source, encoding='utf-8')
    (out/f'{stem}.pdf').write_bytes(typst.compile(str(out/f'{stem}.typ'), root=str(out)))
    return [out/f'{stem}.html', out/f'{stem}.pdf']


def main():
    "The command line"
    parser = argparse.ArgumentParser(description='Build the documentation site, or the README')
    parser.add_argument('--out', default='_site', help='folder to build the site in; what it holds is replaced')
    parser.add_argument('--readme', action='store_true', help='write README.md instead')
    parser.add_argument('--check', action='store_true', help='only say, by exit status, whether README.md is up to date')
    parser.add_argument('--paper', action='store_true', help='write the leaf study as one HTML file and as PDF, into _paper/')
    args, file = parser.parse_args(), ROOT/'README.md'
    if args.paper: return print(*paper(ROOT/'_paper'))
    if not (args.readme or args.check): return print(f'{len(build(args.out))} pages in {args.out}/')
    text, pictures = readme()
    if args.check:
        stale = not file.exists() or file.read_text(encoding='utf-8') != text or not all((ROOT/p).exists() for p in pictures)
        sys.exit('README.md is not up to date: python tools/site.py --readme' if stale else 0)
    for path, data in pictures.items():
        (ROOT/path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT/path).write_bytes(data)
    file.write_text(text, encoding='utf-8')


if __name__ == '__main__': main()  # nbdev's workers import this file too
