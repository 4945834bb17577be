"The site and the README that tools/site.py builds: whole, linked, and saying what the records say."
import importlib, importlib.util, re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parent.parent
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


def exported():
    "Modules that a notebook exports, with the page of that notebook"
    for nb in sorted(site.NBS.glob('[!._]*.ipynb')):
        name = re.search(r'#\|\s*default_exp\s+([\w.]+)', nb.read_text(encoding='utf-8'))
        if name: yield f'kd_leaf.{name[1]}', site.nbpath2html(nb).name


def test_every_notebook_is_a_page(built):
    assert 'index.html' in built.pages
    assert set(built.pages) == {site.nbpath2html(p).name for p in site.NBS.glob('[!._]*.ipynb')}
    for name in built.pages:
        assert set(built.pages) <= set(built.read[name].links), f'{name} does not list every page'


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
            url = urlsplit(link)
            if url.scheme or url.netloc: continue
            file = built.out/unquote(url.path or name)
            there = built.read.get(url.path or name)
            if not file.is_file() or (url.fragment and unquote(url.fragment) not in getattr(there, 'ids', ())): dead.append(f'{name}: {link}')
    assert not dead, '\n'.join(dead)


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
    page = [numbers(row) for row in built.read['leaf.html'].rows]
    missing = [row for row in rows if numbers(row) not in page]
    assert not missing, f'rows of {table.name} that are not on the page: {missing}'
