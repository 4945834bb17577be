"The site and the README that tools/site.py builds: whole, linked, and saying what the records say."
import base64, gzip, importlib, importlib.util, json, posixpath, re, sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import nbformat, pytest
from fastcore.nbio import dict2nb

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
import pages as prepare
spec = importlib.util.spec_from_file_location('kd_leaf_site', ROOT/'tools'/'site.py')  # by path: the standard library has a `site`
site = importlib.util.module_from_spec(spec)
spec.loader.exec_module(site)
TABLES = sorted((ROOT/'results'/'leaf'/'tables').glob('*.md'))


class Read(HTMLParser):
    "Ids, links and headings of a page, the text of its main part, and its tables as rows of cells"
    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.text, self.h1, self.rows, self.inside = Counter(), [], '', 0, [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if 'id' in attrs: self.ids[attrs['id']] += 1
        self.links += [attrs[k] for k in ('href', 'src') if attrs.get(k)]
        self.h1 += tag == 'h1'
        if tag == 'tr': self.rows.append([])
        if tag in ('td', 'th') and self.rows: self.rows[-1].append('')
        if tag in ('main', 'footer', 'td', 'th'): self.inside.append(tag)

    def handle_endtag(self, tag):
        if self.inside and self.inside[-1] == tag: self.inside.pop()

    def handle_data(self, data):
        if self.inside and self.inside[-1] in ('td', 'th') and self.rows: self.rows[-1][-1] += data
        if 'main' in self.inside and 'footer' not in self.inside: self.text += data


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp('site')/'_site'
    pages = site.build(out)
    return SimpleNamespace(out=out, pages=pages, read={n: Read((out/n).read_text(encoding='utf-8')) for n in pages})


def local(page, link):
    "Path on the site and anchor that a page's link leads to, or None where it leads elsewhere"
    url = urlsplit(link)
    if url.scheme or url.netloc: return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), unquote(url.path))) if url.path else page
    return path, unquote(url.fragment)


def page_of(nb): return prepare.nbpath2html(nb.relative_to(prepare.NBS)).as_posix()


def exported():
    "Modules that a notebook exports, with the page of that notebook"
    for nb in prepare.notebooks():
        name = re.search(r'#\|\s*default_exp\s+([\w.]+)', nb.read_text(encoding='utf-8'))
        if name and name[1] != 'all': yield f'kd_leaf.{name[1]}', page_of(nb)  # names of `all` are documented where they are defined


def test_every_notebook_is_a_page(built):
    assert 'index.html' in built.pages
    assert set(built.pages) == {page_of(p) for p in prepare.notebooks()}
    for name in built.pages:
        linked = {there[0] for link in built.read[name].links if (there := local(name, link))}
        assert set(built.pages) <= linked, f'{name} does not list every page'


@pytest.mark.parametrize('module,page', list(exported()))
def test_public_names_have_an_anchor(built, module, page):
    names = importlib.import_module(module).__all__
    assert names, f'{module} exports nothing'
    missing = [n for n in names if n not in built.read[page].ids]
    assert not missing, f'{page} does not document {missing}'


def test_no_dead_local_link(built):
    dead = []
    for name, page in built.read.items():
        for link in page.links:
            if (there := local(name, link)) is None: continue
            path, anchor = there
            ids = getattr(built.read.get(path), 'ids', ())
            if not (built.out/path).is_file() or (anchor and anchor not in ids): dead.append(f'{name}: {link}')
    assert not dead, '\n'.join(dead)
    assert not [l for page in built.read.values() for l in page.links if l.startswith('doi:')]


def test_demo_runs_the_released_student(built):
    text = (built.out/site.DEMO).read_text(encoding='utf-8')
    model = gzip.decompress(base64.b64decode(re.search(r'id="model">([^<]+)', text)[1]))
    assert model == (ROOT/'results/transfer/models/cnn4.int8.onnx').read_bytes()
    linked = {n for n, page in built.read.items() for link in page.links if (there := local(n, link)) and there[0] == site.DEMO}
    assert {'index.html', 'studies/deployed.html'} <= linked


def test_pages_ask_no_other_site_for_anything(built):
    for name in built.pages:
        text = (built.out/name).read_text(encoding='utf-8')
        assert not re.findall(r'<(?:script|img|iframe|source)[^>]+src="(?:https?:)?//[^"]+"|<link[^>]+href="(?:https?:)?//[^"]+"', text), name
    assert not re.findall(r'https?://', (built.out/'site.js').read_text(encoding='utf-8') + (built.out/'site.css').read_text(encoding='utf-8'))


def test_search_finds_every_heading(built):
    text = (built.out/'search-index.js').read_text(encoding='utf-8')
    rows = json.loads(text.removeprefix('kdSections(').removesuffix(');\n'))
    for page, heading, url, words in rows:
        path, _, anchor = url.partition('#')
        assert path in built.pages and (not anchor or anchor in built.read[path].ids), url
    for module, page in exported():
        names = importlib.import_module(module).__all__
        functions = {n for n in names if callable(getattr(importlib.import_module(module), n))}
        assert functions <= {heading for _, heading, url, _ in rows if url.startswith(page)}, page


def test_previous_and_next_make_one_chain(built):
    order = list(built.pages)
    for i, name in enumerate(order):
        text = (built.out/name).read_text(encoding='utf-8')
        found = {rel: local(name, url)[0] for rel, url in re.findall(r'<a rel="(prev|next)" href="([^"]+)"', text)}
        wanted = dict(prev=order[i-1] if i else None, next=order[i+1] if i+1 < len(order) else None)
        assert found == {k: v for k, v in wanted.items() if v}
        assert f'blob/main/nbs/{built.pages[name].src.relative_to(prepare.NBS).as_posix()}' in text


def test_tables_stand_in_a_box_that_scrolls(built):
    for name in built.pages:
        text = (built.out/name).read_text(encoding='utf-8')
        assert len(re.findall('<table', text)) == len(re.findall(r'<div class="scroll" tabindex="0">\s*(?:<div>\s*)*<table', text)), name


def a_page(*cells):
    "A page of the site made from cells"
    head = nbformat.v4.new_raw_cell('---\ntitle: A page\n---')
    nb = dict2nb(nbformat.v4.new_notebook(cells=[head, *cells]))
    page = prepare.read_page(prepare.NBS/'studies/a.ipynb', nb, nb)
    prepare.parse(page, '')
    prepare.relink(page.tree['blocks'], site.site_link(page, {page.name: page}, Path('nowhere'), site.get_config(ROOT)))
    site.number_captions(page.tree['blocks'], dict(Figure=0, Table=0))
    site.scroll_tables(page.tree['blocks'])
    return prepare.pandoc(json.dumps(page.tree), '-f', 'json', '-t', 'html5', '--mathml')


def output(**data):
    data = {f'{k.split("_")[0]}/{k.split("_")[1]}': v for k, v in data.items()}
    return nbformat.v4.new_code_cell('f()', outputs=[nbformat.v4.new_output('display_data', data=data)])


def test_what_a_cell_becomes():
    md = nbformat.v4.new_markdown_cell
    log = '<style>b {}</style><table class="fastprogress"><tr><td>epoch</td></tr></table><script>1</script>'
    text = a_page(output(text_html=log, text_markdown='```html\n<table>\n```'))
    assert '<td>epoch</td>' in text and 'style>' not in text and 'script' not in text and '&lt;' not in text
    text = a_page(md('See [x](doi:10.1145/1.2), (arXiv:1503.02531), [arXiv:1106.1813](https://arxiv.org/abs/1106.1813) and $T^2$.'))
    assert 'href="https://doi.org/10.1145/1.2"' in text and '<math' in text
    assert text.count('href="https://arxiv.org/abs/') == 2 and 'href="https://arxiv.org/abs/1503.02531"' in text
    table = '**Scores**\n\n| a |\n|:--|\n| 1 |\n\n<details><summary>How made</summary>\n\n*on a CPU*\n\n</details>'
    text = a_page(output(text_markdown=table), output(text_markdown='**More**\n\n| a |\n|:--|\n| 1 |'))
    assert '<strong>Table\N{NO-BREAK SPACE}1. Scores</strong>' in text and 'Table\N{NO-BREAK SPACE}2. More' in text
    assert '<details>' in text and '<em>on a CPU</em>' in text
    figure = output(image_png='iVBORw0KGgo=')
    figure.source = '#| fig-cap: "Gain"\n#| fig-alt: "Bars"\nf()'
    text = a_page(figure)
    assert 'Figure\N{NO-BREAK SPACE}1. Gain</figcaption>' in text and 'alt="Bars"' in text and 'src="../images/studies-a-1.png"' in text


def test_page_has_one_heading_text_and_unique_ids(built):
    for name, page in built.read.items():
        assert page.h1 == 1, f'{name}: {page.h1} h1'
        assert len(page.text.split()) > 20, f'{name} is all but empty'
        twice = [i for i, n in page.ids.items() if n > 1]
        assert not twice, f'{name}: {twice} more than once'
        assert ':::' not in page.text and '#|' not in page.text, f'{name} shows Quarto markup'


def test_readme_is_up_to_date():
    text, pictures = site.readme()
    assert (ROOT/'README.md').read_text(encoding='utf-8') == text, 'run: python tools/site.py --readme'
    missing = [p for p in pictures if not (ROOT/p).exists()]
    assert not missing, missing


def test_readme_links_lead_somewhere():
    text = (ROOT/'README.md').read_text(encoding='utf-8')
    links = re.findall(r'\]\(<?([^)\s>]+)', text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    assert links
    dead = [l for l in links if not urlsplit(l).scheme and not l.startswith('#') and not (ROOT/unquote(l.partition('#')[0])).exists()]
    assert not dead, dead


def table_rows(text):
    "Cells of the rows of a Markdown table that hold a number"
    rows = [[re.sub(r'[*`]', '', c).strip() for c in line.strip().strip('|').split('|')] for line in text.splitlines() if line.startswith('|')]
    return [row for row in rows if any(re.search(r'\d', c) for c in row)]


@pytest.mark.skipif(not TABLES, reason='no results/leaf/tables: the leaf study has not been run on real images here')
@pytest.mark.parametrize('table', TABLES, ids=lambda p: p.stem)
def test_table_stands_on_the_leaf_page(built, table):
    rows = table_rows(table.read_text(encoding='utf-8'))
    assert rows, f'{table.name} holds no numbers'
    numbers = lambda row: re.findall(r'-?\d*\.?\d+', ' '.join(row).replace('−', '-'))
    page = [numbers(row) for row in built.read['studies/leaf.html'].rows]
    missing = [row for row in rows if numbers(row) not in page]
    assert not missing, f'rows of {table.name} that are not on the page: {missing}'


def test_a_page_as_a_paper(tmp_path):
    "Authors, date, numbered figures and tables, references: all from the notebook, CITATION.cff and the records"
    from paper import paper
    html, pdf = paper(tmp_path, 'studies/transfer.ipynb')
    page, source = html.read_text(encoding='utf-8'), pdf.with_suffix('.typ').read_text(encoding='utf-8')
    assert pdf.read_bytes().startswith(b'%PDF') and 'The kd_leaf authors' in page and re.search(r'results of 20\d\d-\d\d-\d\d', source)
    tables = len(re.findall('kind: table$', source, flags=re.M))
    assert tables >= 8 and len(re.findall('<caption>Table', page)) == tables
    assert len(re.findall('<figcaption[^>]*>Figure', page)) == source.count('#figure(image(') >= 3
    cited, (listed,) = {*re.findall(r'arxiv\.org/abs/[\d.]+\d', source)}, re.findall(r'== References(.*)', source, flags=re.S)
    assert cited == {*re.findall(r'arxiv\.org/abs/[\d.]+\d', listed)} and listed.count('\n+ ') == len({*re.findall('https?://[^"]+', listed)})
