"Reads the requirements out of settings.ini and finds the packages; all else is in pyproject.toml."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

cfg = ConfigParser()
cfg.read(Path(__file__).with_name('settings.ini'), encoding='utf-8')
needs = cfg['DEFAULT']
extras = {k.removesuffix('_requirements'): v.split() for k, v in needs.items() if k.endswith('_requirements')}
library = find_packages(include=['kd_leaf*'], exclude=['kd_leaf.benchmarks*'])  # benchmarks are run from the checkout
setup(packages=[*library, 'kd_leaf.cards', 'kd_leaf.studies'], install_requires=needs['requirements'].split(), extras_require=extras)
