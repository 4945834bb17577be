"Reads the requirements out of settings.ini; all else is in pyproject.toml."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

cfg = ConfigParser()
cfg.read(Path(__file__).with_name('settings.ini'))
needs = cfg['DEFAULT']
extras = {k.removesuffix('_requirements'): v.split() for k, v in needs.items() if k.endswith('_requirements')}
setup(install_requires=needs['requirements'].split(), extras_require=extras)
