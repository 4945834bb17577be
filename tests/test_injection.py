"Names that a user chooses, in whatever letters, are shown as they are: in Markdown and what is made of it, in HTML, on a model card, in TOML"
import contextlib, json, re
from html.parser import HTMLParser
from pathlib import Path
import pandas as pd, pypandoc, pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies as st
from PIL import Image
from kd_leaf.data.cards import load_card
from kd_leaf.data.files import _toml, write_card
from kd_leaf.deploy.export import export_onnx
from kd_leaf.deploy.hub import model_card
from kd_leaf.deploy.page import make_page, web_runtime
from kd_leaf.models.zoo import create_model
from kd_leaf.report.format import escape, md_table
from kd_leaf.study.config import load_study
from kd_leaf.study.spec import study_file

RUN_ALL = (Path(__file__).parents[1]/'nbs/run_all.ipynb').read_text(encoding='utf-8')
NASTY = ['<b>', '</td>', '<script>alert(1)</script>', '</script>', '![x](y)', '[x](javascript:y)', '`x`', '**x**', '_x_', '~~x~~', '$x^2$', '$$', '\\input{x}', '\\', '|',
         '#', '# x', '&lt;', '&', '{{x}}', '{% x %}', '%', "'", '"', '---', '@x', '[^1]', '[x]: y', '\n\n', '\t', ':x:', '=1+1', '::: x', '<!--', '\x00', '\u202e', '葉']
letters = st.text(st.characters(exclude_categories=['Cs']), min_size=1, max_size=12)
names = st.lists(st.one_of(letters, st.lists(st.sampled_from(NASTY), min_size=1, max_size=4).map(''.join)), min_size=1, max_size=40, unique=True)
# without shrinking, which takes minutes with files and another program
some = settings(max_examples=15, derandomize=True, phases=[Phase.explicit, Phase.generate], suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
PLAIN = {'Str', 'Space', 'SoftBreak', 'Quoted', 'Para', 'Plain'}


def seen(text): return ' '.join(re.sub(r'[\x00-\x1f\x7f]', ' ', text).split())


def cells(tree):
    "Blocks of each cell in the first column of a table"
    table = next(b for b in tree['blocks'] if b['t'] == 'Table')
    for body in table['c'][4]:
        for row in body[3]: yield row[1][0][4]


def kinds(x):
    "Kinds of all nodes of a part of pandoc's tree"
    if isinstance(x, list): return set().union(*map(kinds, x)) if x else set()
    return ({x['t']} | kinds(x.get('c', []))) if isinstance(x, dict) and 't' in x else set()


@pytest.mark.parametrize('dialect', ['gfm-autolink_bare_uris', 'markdown-smart-citations'])
@given(names=names)
@some
def test_a_table_shows_text(dialect, names):
    "Nothing but text comes of it, so no writer, of HTML, LaTeX or Typst, has anything to be misled by"
    names = [n for n in names if seen(n)]
    table = md_table(pd.DataFrame(dict(name=names+['x'], n=1)))
    found = list(cells(json.loads(pypandoc.convert_text(table, 'json', dialect))))
    assert len(found) == len(names)+1
    assert kinds(found) <= PLAIN, kinds(found)-PLAIN


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    try: web_runtime()
    except RuntimeError as e: pytest.skip(f'no page can be made: {e}')
    return tmp_path_factory.mktemp('injection')


class Scripts(HTMLParser):
    "What a page consists of: tags, and the texts of its scripts"
    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts = [], []
        self.feed(text)
    def handle_starttag(self, tag, attrs): self.tags.append(tag); self.scripts += [''] if tag == 'script' else []
    def handle_data(self, data):
        if self.tags and self.tags[-1] == 'script' and self.scripts: self.scripts[-1] += data


def onnx_of(folder, names):
    return export_onnx(create_model('cnn4', len(names)), folder/'a.onnx', names, 16, name='cnn4', licence='MIT')


@given(names=names.filter(lambda o: len(o) > 1))
@settings(some, max_examples=5)
def test_a_page_and_a_card_show_text(folder, names):
    plain = Scripts(make_page(onnx_of(folder, [f'c{k}' for k in range(len(names))]), [], folder/'b.html').read_text(encoding='utf-8'))
    classifier = onnx_of(folder, names)
    page = Scripts(make_page(classifier, [], folder/'a.html', title=names[0], lead=names[-1]).read_text(encoding='utf-8'))
    assert page.tags == plain.tags
    config = next(json.loads(o) for o in page.scripts if o.lstrip().startswith('{'))
    assert config['classes'] == names
    fields = dict(data='d', terms='t', training='t', licence='MIT', repo_id='a/b', n_test=1, scores=[dict(score='accuracy', value=.5, low=.4, high=.6)])
    card = json.loads(pypandoc.convert_text(model_card(classifier, ['a.onnx'], **fields), 'json', 'gfm-autolink_bare_uris'))
    classes = next(b for b in card['blocks'] if b['t'] == 'Table')['c'][4][0][3][0][1][1]
    assert kinds(classes[4]) <= PLAIN


@given(title=letters, terms=st.lists(st.sampled_from(NASTY), min_size=1, max_size=4).map(''.join), about=letters)
@some
def test_a_card_holds_what_was_written(tmp_path, title, terms, about):
    for kind in ('a', 'b'):
        (tmp_path/'mine'/kind).mkdir(parents=True, exist_ok=True)
        for k in range(9): (tmp_path/f'mine/{kind}/{k}.png').exists() or Image.new('RGB', (8, 8), (k, 9, ord(kind))).save(tmp_path/f'mine/{kind}/{k}.png')
    (tmp_path/'cards/mine.toml').unlink(missing_ok=True) # another's card is not overwritten
    write_card(tmp_path/'mine', title, terms=terms, about=about, dest=tmp_path/'cards')
    with contextlib.chdir(tmp_path): card = load_card('mine')
    assert (card.title, card.terms, card.about) == (title, terms, about)


@given(title=st.one_of(letters, st.lists(st.sampled_from(NASTY), min_size=1, max_size=4).map(''.join)))
@some
def test_the_title_of_a_study_is_a_title(tmp_path, title):
    "Read from TOML as it was written; above the tables of a run, nothing but text in one heading"
    text = study_file('leaf').read_text(encoding='utf-8').replace('name = "leaf"', 'name = "mine"')
    (tmp_path/'mine.toml').write_text(re.sub('^title = .*$', lambda _: f'title = {_toml(title)}', text, flags=re.M), encoding='utf-8')
    assert load_study(tmp_path/'mine.toml').title == title
    assert '# {escape(plans[name].title)}' in RUN_ALL
    blocks = json.loads(pypandoc.convert_text(f'# {escape(title)} x', 'json', 'gfm-autolink_bare_uris'))['blocks']
    assert [b['t'] for b in blocks] == ['Header'] and kinds(blocks[0]['c'][2]) <= PLAIN, blocks
