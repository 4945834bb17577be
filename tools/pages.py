"""Notebooks as nbdev prepares them, as pandoc's document trees: what the site, the README and the paper are made from."""
import ast, html, json, posixpath, re, subprocess
from base64 import b64decode
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import pypandoc
from fastcore.nbio import cell_frontmatter, md_frontmatter, mk_cell, read_nb
from nbdev.config import nbpath2html
from nbdev.serve import proc_nbs

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT/'nbs'
# Markdown as Jupyter and GitHub read it, so that a page says here what it says there: "~600", "@patch", a list right below its sentence.
MARKDOWN = ('markdown-smart-citations-subscript-superscript-blank_before_header-blank_before_blockquote'
            '+lists_without_preceding_blankline+autolink_bare_uris')
MIMES = 'text/markdown text/html image/svg+xml image/png image/jpeg text/latex text/plain'.split()


def pandoc(text, *args):
    "`text` through pandoc"
    command = [pypandoc.get_pandoc_path(), *args]
    return subprocess.run(command, input=text, capture_output=True, encoding='utf-8', check=True).stdout


# --- notebooks, as nbdev prepares them: it runs exported cells and imports; other outputs are the stored ones

def notebooks(): return sorted(p for p in NBS.rglob('[!._]*.ipynb') if '.ipynb_checkpoints' not in p.parts)


def processed(only=None):
    "Source and processed notebook of every page, or of `only` one ('studies/leaf.ipynb')"
    with chdir(ROOT):
        if only: (ROOT/'_proc'/only).unlink(missing_ok=True)
        cache = proc_nbs(file_glob=Path(only).name if only else '', force=not only)
    nbs = [(src, read_nb(src), read_nb(cache/src.relative_to(NBS))) for src in ([NBS/only] if only else notebooks())]
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
    if wrong:
        raise ValueError('the first markdown cell must hold "# Title", one "> line", and nothing else: ' + '; '.join(wrong))


def constants(nb):
    "Ids of exported cells that assign public names, and those names with the code: `show_doc` knows functions and classes only"
    for cell in nb.cells:
        if cell.cell_type != 'code' or 'export' not in cell.directives or 'hide' in cell.directives: continue
        found = {}
        for node in ast.parse(cell.source).body:
            targets = getattr(node, 'targets', None) or [getattr(node, 'target', None)]
            names = [t.id for t in targets if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(t, ast.Name)]
            found |= {name: ast.get_source_segment(cell.source, node) for name in names if not name.startswith('_')}
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
    before, after = text[:m.start()].strip().lstrip('-'), text[m.end():].strip().replace('__main__.', '')
    return f'::: {{.doc}}\n{m[1]} `{m[2]}` {{#{m[2]} .name}}\n\n{before}\n\n{after}\n\n:::'


def options(source):
    "Quarto's `#| key: value` lines of a code cell, and the code without them"
    opts = dict(re.findall(r'^#\|\s*([\w-]+):\s*(.*?)\s*$', source, flags=re.M))
    return {k: v.strip('"\'') for k, v in opts.items()}, re.sub(r'^#\|.*\n?', '', source, flags=re.M).strip('\n')


def mime_of(data):
    "The representation of an output to show: fastprogress and pandas write HTML in a Markdown fence too, which is no table"
    data = {k: v for k, v in data.items() if not (k == 'text/markdown' and 'text/html' in data and ''.join(v).startswith('```'))}
    return next((m for m in MIMES if m in data), None)


def image_md(data, mime, opts, page):
    "An image as markdown; its bytes go to `page.media`"
    name = f'images/{page.stem}-{len(page.media) + 1}.{mime[6:].split("+")[0]}'
    page.media[name] = data.encode() if 'svg' in mime else b64decode(data)
    caption, alt = opts.get('fig-cap', ''), opts.get('fig-alt', '')
    attrs = f'alt="{alt or "output of the code above"}"' if alt or not caption else ''
    return f'![{caption}](/{name})' + (f'{{{attrs}}}' if attrs else '')


def output_md(out, opts, page):
    "One output of a cell as markdown"
    if out.output_type == 'error': return fence(f'{out.ename}: {out.evalue}', '.output .error')
    if out.output_type == 'stream':
        text = re.sub(r'^.*\r(?!\n)', '', ''.join(out.text), flags=re.M)  # of a progress bar only the end is kept
        return fence(text.rstrip(), '.output') if text.strip() else ''
    mime = mime_of(out.data)
    if mime is None: return ''
    data = ''.join(out.data[mime])
    if mime == 'text/html':
        data = re.sub(r'<(style|script)\b.*?</\1>', '', data, flags=re.S)
        return fence(data.strip(), '=html') if data.strip() else ''
    if mime.startswith('image/'): return image_md(data, mime, opts, page)
    if mime == 'text/markdown':  # "0.28 ± 0.01" and "[-0.01, +0.02]" on one line each
        return re.sub(r'(?<=\d) (?=±)|(?<=±) |(?<=\d,) (?=[+-]\d)', '\N{NO-BREAK SPACE}', data)
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
    "A page: title, description, markdown, images (`media`), anchors (`ids`); `name` is its path on the site"
    name = nbpath2html(src.relative_to(NBS)).as_posix()
    page = SimpleNamespace(src=src, name=name, stem=name.removesuffix('.html').replace('/', '-'), media={}, ids=set())
    head = next(cell_frontmatter(c.source) for c in nb.cells if c.cell_type == 'raw')
    page.title, page.about = head['title'], head.get('description', '')
    page.text = '\n\n'.join(filter(None, (cell_md(c, page) for c in with_constants(src_nb, nb))))
    return page


def anchors(page):
    "Give each heading of the page's tree one anchor that is its own; a documented name is found as nbdev writes it, in lower case, too"
    heads = []
    walk(page.tree['blocks'], lambda x: heads.insert(0, x['c']) if x['t'] == 'Header' else None)
    names = {h[1][0] for h in heads if 'name' in h[1][1]}
    reserved = names | {n.lower() for n in names}
    exact = {}  # heading's anchor: the name as it is written, where that differs
    for h in heads:
        anchor, h[0] = h[1][0], max(h[0], 2)  # the title is the page's one h1
        if 'name' in h[1][1] and anchor not in page.ids:
            low = anchor.lower()
            if low not in names | page.ids: h[1][0], exact[low] = low, anchor
            page.ids |= {anchor, low}
        else:
            n = 0
            while h[1][0] in reserved | page.ids: h[1][0], n = f'{anchor}-{n + 1}', n + 1
            page.ids.add(h[1][0])
    # Beside the heading and not in it: pandoc copies what is in it to the table of contents.
    beside = lambda name: {'t': 'Plain', 'c': [{'t': 'Span', 'c': [[name, ['exact'], []], []]}]}
    walk(page.tree['blocks'],
         lambda x: [x, beside(exact[x['c'][1][0]])] if x['t'] == 'Header' and x['c'][1][0] in exact else None)


def link_arxiv(tree):
    "`arXiv:1503.02531` in running text becomes a link"
    linked = set()
    def mark(x):
        if x['t'] == 'Link': walk(x['c'][1], lambda y: linked.add(id(y)))
    walk(tree, mark)
    text = lambda s: [{'t': 'Str', 'c': s}] if s else []
    def fix(x):
        if x['t'] != 'Str' or id(x) in linked or not (m := re.search(r'arXiv:(\d{4}\.\d{4,5})', x['c'])): return
        link = {'t': 'Link', 'c': [['', [], []], text(m[0]), [f'https://arxiv.org/abs/{m[1]}', '']]}
        return text(x['c'][:m.start()]) + [link] + text(x['c'][m.end():])
    walk(tree, fix)


def parse(page, top, reader=MARKDOWN):
    "Put `top` and the page's text into a tree, `page.tree`"
    # Without --columns a long row would fix the widths of a table's columns.
    page.tree = json.loads(pandoc(f'{top}\n\n{page.text}', '-f', reader, '-t', 'json', '--columns=9999'))
    anchors(page)
    link_arxiv(page.tree['blocks'])
    return page


def relink(tree, to):
    "Every link and image of the tree, raw HTML too, through `to(url, is_image)`; a link to None becomes plain text"
    raw = lambda m: f'{m[1]}{to(m[2], m[1].startswith("src")) or "#"}"'
    def fix(x):
        if x['t'] in ('Link', 'Image'):
            url = to(re.sub('^doi:', 'https://doi.org/', x['c'][2][0]), x['t'] == 'Image')
            if url is None: return x['c'][1]
            x['c'][2][0] = url
        if x['t'] in ('RawInline', 'RawBlock'): x['c'][1] = re.sub(r'\b((?:href|src)=")([^"]+)"', raw, x['c'][1])
    walk(tree, fix)


def site_path(page, path, cfg):
    "Path below the site's root of what `page` calls `path`: relative to its folder, or nbdev's absolute link"
    if path.startswith(cfg.doc_url): return path.removeprefix(cfg.doc_url) or 'index.html'
    if path.startswith('/'): return path[1:]
    return posixpath.normpath(posixpath.join(posixpath.dirname(page.name), path)) if path else page.name


def page_path(path): return nbpath2html(path).as_posix() if path.endswith('.ipynb') else path


def repo_path(page, path):
    "Path in the repository of the file that a page's notebook calls `path`, or None"
    file = (page.src.parent/unquote(path)).resolve()
    return file.relative_to(ROOT).as_posix() if path and file.exists() and file.is_relative_to(ROOT) else None


def code_spans(text):
    "Plain text to HTML, with its `backticks`"
    return re.sub('`([^`]+)`', r'<code>\1</code>', html.escape(text))
