"The wheel, built from the sdist, works outside the repository"
import configparser, importlib.metadata, os, re, subprocess, sys, zipfile
from pathlib import Path
import pytest
from packaging.requirements import Requirement
import kd_leaf

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module')
def wheel(copy, tmp_path_factory):
    "Built in a copy: setuptools leaves files beside the sources"
    out = tmp_path_factory.mktemp('dist')
    subprocess.run([sys.executable, '-m', 'build', '--outdir', str(out), str(copy)], check=True, capture_output=True)
    return next(out.glob('*.whl'))


@pytest.fixture(scope='module')
def names(wheel): return set(zipfile.ZipFile(wheel).namelist())


def test_wheel_holds_cards_and_studies(names):
    for f in (ROOT/'data').glob('*.toml'): assert f'kd_leaf/cards/{f.name}' in names
    for f in (ROOT/'nbs/studies').glob('*.toml'): assert f'kd_leaf/studies/{f.name}' in names
    assert not [n for n in names if n.endswith(('.jpg', '.png', '.zip', '.ipynb'))]


def test_wheel_holds_every_module_but_the_benchmarks(names):
    modules = {m.relative_to(ROOT).as_posix() for m in (ROOT/'kd_leaf').rglob('*.py')}
    benchmarks = {m for m in modules if m.startswith('kd_leaf/benchmarks/')}
    assert benchmarks
    assert {n for n in names if n.endswith('.py')} == modules - benchmarks


def test_wheel_requirements_come_from_settings(wheel, names):
    meta = zipfile.ZipFile(wheel).read(next(n for n in names if n.endswith('METADATA'))).decode()
    stated = {str(Requirement(r)) for r in re.findall(r'^Requires-Dist: (.+)$', meta, flags=re.M)}
    cfg = configparser.ConfigParser()
    cfg.read(ROOT/'settings.ini', encoding='utf-8')
    wanted = {str(Requirement(r)) for r in cfg['DEFAULT']['requirements'].split()}
    for extra in EXTRAS:
        wanted |= {str(Requirement(f'{r}; extra == "{extra}"')) for r in cfg['DEFAULT'][f'{extra}_requirements'].split()}
    assert stated == wanted


EXTRAS = 'dev', 'bench', 'weights', 'interpret', 'deploy', 'cluster'


def test_what_is_installed_is_what_was_asked_for():
    "In the versions of settings.ini, without contradictions; .github/workflows/audit.yml asks for known holes"
    cfg = configparser.ConfigParser()
    cfg.read(ROOT/'settings.ini', encoding='utf-8')
    asked = [Requirement(r) for k in ('requirements', *(f'{e}_requirements' for e in EXTRAS)) for r in cfg['DEFAULT'][k].split()]
    plain = lambda name: re.sub('[-_.]+', '-', name.lower())
    have = {plain(d.metadata['Name']): d.version for d in importlib.metadata.distributions()}
    found = [(r, have[plain(r.name)]) for r in asked if plain(r.name) in have]
    assert len(found) > 30 and [f'{r}, installed: {v}' for r, v in found if v not in r.specifier] == []
    check = subprocess.run([sys.executable, '-m', 'pip', 'check'], capture_output=True, text=True)
    assert check.stdout.strip(), check.stderr
    assert [line for line in check.stdout.splitlines() if any(plain(line).startswith(f'{plain(r.name)} ') for r, _ in found)] == []


def test_one_version():
    "In the package, the citation and at the top of the changelog"
    cited = re.search(r'^version: (.+)$', (ROOT/'CITATION.cff').read_text(encoding='utf-8'), flags=re.M)[1]
    newest = re.search(r'^## \[(\d.+?)\]', (ROOT/'CHANGELOG.md').read_text(encoding='utf-8'), flags=re.M)[1]
    assert kd_leaf.__version__ == cited == newest


def test_wheel_works_outside_the_repository(wheel, tmp_path):
    install = [sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--target', str(tmp_path/'site'), str(wheel)]
    subprocess.run(install, check=True)
    code = '''
import kd_leaf, pathlib
from kd_leaf.all import *
from kd_leaf.core import project_root
from kd_leaf.data.cards import list_cards
from kd_leaf.study.config import load_study
assert len(list_cards()) >= 5 and load_study("leaf").grid["students"]
assert project_root() == pathlib.Path(".").resolve()
assert callable(distill) and callable(KDCallback)
print(kd_leaf.__file__, len(image_store(size=16)))
'''
    env = dict(os.environ, PYTHONPATH=str(tmp_path/'site'), KD_LEAF_CACHE=str(tmp_path/'cache'))
    out = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert out.stdout.startswith(str(tmp_path/'site'))
