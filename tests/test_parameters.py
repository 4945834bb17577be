"What a run and a definition accept, as a table: every field and key with a wrong type, zero, a negative, nan, a huge and an unknown value"
import math
from dataclasses import fields
import pytest
from kd_leaf.study import spec
from kd_leaf.study.config import load_study, make_runs
from kd_leaf.study.run import Run

RUN = dict(dataset='synthetic-leaves', dataset_sha256='abc', role='student', model='cnn4', seed=0, size=32, epochs=2)
TAUGHT = RUN | dict(teacher='resnet50', teacher_key='k', loss='soft_target', temperature=4., alpha=.5, views=1)
NAN, INF = math.nan, math.inf
NUMBERS = ('3', None, [1], True, NAN, INF, -1)  # a number as text, no number, a list, a truth value, and what no number may be here
TABLE = {  # field: (accepted, refused)
    'dataset': (('roses',), (3, None)), 'dataset_sha256': (('ab',), (3,)),
    'role': (('teacher', 'pretraining'), ('boss', '', 3)), 'model': (('cnn4@small', 'resnet18'), ('cnn5', '', 3)),
    'seed': ((0, 2**32-1), (*NUMBERS, .5, 2**32)), 'size': ((16, 64), (*NUMBERS, 0, 32.5, 100_000)),
    'epochs': ((1, 100), (*NUMBERS, 0, 1.5, 10**9)), 'bs': ((2, 64), (*NUMBERS, 0, 1, 16.5, 10**9)),
    'lr': ((1, 1e-5), (*NUMBERS, 0, 1e9)), 'wd': ((0, .1), (*NUMBERS, 1e9)),
    'balance': (('smote', 'weights'), ('smot', '', 3)), 'fraction': ((1, .1), (*NUMBERS, 0, 1.5)),
    'start_size': ((0, 16), (*NUMBERS, 24.5, 64)), 'weights': (('none', 'imagenet', 'run:abc'), ('nowhere.pth', '', 3)),
    'mode': (('fp32', 'auto'), ('fp64', '', 3)), 'teacher': (('resnet18', 'resnet18@weak'), ('resnet11', 3)),
    'teacher_key': (('abc',), (3,)), 'loss': (('dkd',), ('soft', '', 3)),
    'temperature': ((1, 4.5), (*NUMBERS, 0, 1e9)), 'alpha': ((0, 1), (*NUMBERS, 1.5)), 'views': ((1, 20), (*NUMBERS, 1.5, 10**9)),
    'augment': ((True, False), (1, 'no', None)), 'upright': ((True, False), (0, 'yes')),
    'unlabelled': ((False, True), ('yes', 1)), 'teaching': (('', 'online'), ('offline', 3)),
    'teacher_size': ((0, 64), (*NUMBERS, 24.5, 10**9)), 'freeze_epochs': ((0, 2), (*NUMBERS, 1.5, 10**9)),
    'lr_mult': ((1, 10.), (*NUMBERS, 0, 1e9)), 'label_smoothing': ((0, .1), (*NUMBERS, 1)), 'tau': ((0, .5), (*NUMBERS, 1e9)), 'tta': ((True, False), (1, 'yes', None)),
}
ACCEPTED = [(k, v) for k, (good, _) in TABLE.items() for v in good]
REFUSED = [(k, v) for k, (_, bad) in TABLE.items() for v in bad]


def test_the_table_has_all_fields():
    assert set(TABLE) == {f.name for f in fields(Run)} and len(ACCEPTED)+len(REFUSED) >= 118


@pytest.mark.parametrize('field, value', ACCEPTED)
def test_accepted(field, value): assert getattr(Run(**TAUGHT | {field: value}), field) == value


@pytest.mark.parametrize('field, value', REFUSED, ids=str)
def test_refused(field, value):
    "In one line that names the field or the value"
    with pytest.raises(ValueError) as e: Run(**TAUGHT | {field: value})
    said = str(e.value)
    assert '\n' not in said and (field in said or 'start_size' in said) and repr(value) in said


TOML = '''name = "pair"
title = "Two students"
dataset = "synthetic-leaves"
kd = {loss = "soft_target", temperature = 4.0, alpha = 0.7}
teacher = {lr = 1e-3}
student = {fraction = 0.5}
selector = {epochs = 2}
[grid]
teachers = ["resnet18"]
students = ["cnn4"]
balance = ["none"]
[profile.quick]
size = 32
seeds = [0]
teacher = {epochs = 1}
student = {epochs = 1}
'''
KEYS = [  # old, new, what the error says
    ('title =', 'titel =', "'titel': did you mean 'title'"), ('[grid]', '[gird]', "'gird': did you mean 'grid'"),
    ('temperature', 'temprature', "[kd] 'temprature': did you mean 'temperature'"), ('lr = 1e-3', 'learning_rate = 1', '[teacher]'),
    ('lr = 1e-3', 'alpha = 1', "[teacher] 'alpha'"), ('lr = 1e-3', 'lr = "1e-3"', "lr = '1e-3': give a number"),
    ('fraction = 0.5', 'seed = 1', "[student] 'seed'"), ('fraction = 0.5', 'fraction = true', 'fraction = True: give a number'),
    ('selector = {epochs', 'selector = {epoch', "[selector] 'epoch': did you mean 'epochs'"),
    ('selector = {epochs = 2}', 'selector = 2', 'selector = 2: give a table'),
    ('teachers = [', 'teacher = [', "[grid] 'teacher'"), ('["resnet18"]', '"resnet18"', "teachers = 'resnet18': give a list"),
    ('["cnn4"]', '[4]', 'an entry = 4: give text'), ('["cnn4"]', '[]', 'students is missing or empty'),
    ('balance = ["none"]\n', '', 'balance is missing or empty'), ('size = 32', 'size = "32"', "size = '32': give a whole number"),
    ('size = 32', 'size = 32.5', 'size = 32.5: give a whole number'), ('size = 32\n', '', 'size is missing or empty'),
    ('seeds = [0]', 'seeds = 0', 'seeds = 0: give a list'), ('seeds = [0]', 'seeds = ["0"]', "an entry = '0': give a whole number"),
    ('seeds = [0]', 'seed = [0]', "'seed': did you mean 'seeds'"), ('name = "pair"', 'name = "pear"', "it must be the name of the file, 'pair'"),
    ('name = "pair"\n', '', 'lacks name'), ('dataset = "synthetic-leaves"', 'dataset = 3', 'dataset = 3: give text'),
    ('[profile.quick]', '[profile.fast]', "unknown profile 'quick'"), ('[0]', '[0', 'no valid TOML'),
    ('balance = ["none"]', 'balance = ["none"]\nvariants = [{temprature = 1.0}]', "'temprature': did you mean 'temperature'"),
    ('lr = 1e-3', 'lr = 0', '[teacher]: lr=0: choose a number above 0'), ('lr = 1e-3', 'bs = 1', '[teacher]: bs=1'),
    ('fraction = 0.5', 'fraction = 1.5', '[student]: fraction=1.5'), ('fraction = 0.5', 'start_size = 64', '[student]: start_size=64: choose at most size=32'),
    ('temperature = 4.0', 'temperature = 0', '[kd]: temperature=0'), ('alpha = 0.7', 'views = -1', "[kd] 'views': choose one of"), ('selector = {epochs = 2}', 'selector = {epochs = 0}', '[selector]: epochs=0'),
    ('size = 32', 'size = 4', '[profile.quick]: size=4'), ('seeds = [0]', 'seeds = [-1]', 'seeds: seed=-1'), ('teacher = {epochs = 1}', 'teacher = {epochs = 0}', '[profile.quick] [teacher]: epochs=0'),
    ('balance = ["none"]', 'balance = ["none"]\nvariants = [{alpha = 2.0}]', 'alpha=2.0: choose a number from 0 to 1'),
    ('balance = ["none"]', 'balance = ["none"]\nvariants = ["dkd"]', "an entry = 'dkd': give a table"),
]


@pytest.fixture
def study(tmp_path, monkeypatch):
    "A function that reads the definition above with something replaced"
    monkeypatch.setattr(spec, '_given', {})
    def read(old='', new=''):
        file = tmp_path/'pair.toml'
        assert old in TOML
        file.write_text(TOML.replace(old, new, 1) if old else TOML, encoding='utf-8')
        return load_study(str(file))
    return read


def test_the_definition_is_fine(study):
    class Images: name, sha256 = 'synthetic-leaves', 'abc'
    assert [r.role for r in make_runs(study(), Images)] == ['teacher', 'student', 'student']


@pytest.mark.parametrize('old, new, message', KEYS)
def test_keys_of_a_definition(study, old, new, message):
    with pytest.raises(ValueError) as e: study(old, new)
    assert message in str(e.value) and ('pair.toml' in str(e.value) or 'unknown profile' in message)


@pytest.mark.parametrize('name', ['../leaf', 'a/b', 'leaf@../x', 'leaf@a/b', '.leaf', ''])
def test_names_that_would_leave_the_folder(name):
    with pytest.raises(ValueError): load_study(name)


def test_two_studies_of_one_name(tmp_path, monkeypatch):
    (tmp_path/'studies').mkdir()
    (tmp_path/'studies/leaf.toml').write_text(TOML.replace('"pair"', '"leaf"'), encoding='utf-8')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match='two studies are called .leaf.'): load_study('leaf')


def test_a_definition_that_is_refused_takes_no_other_study_down(study):
    "Nor does one whose file is gone; both would be in all lists, and the front page reads all of them"
    known = spec.list_studies()
    with pytest.raises(ValueError): study('"resnet18"', '3')
    assert spec.list_studies() == known
    study()
    assert 'pair' in spec.list_studies()
    spec._given['pair'].unlink()
    assert spec.list_studies() == known
