"The README: its five lines run as they stand but for the length of training, on images that the test makes; it is short, and its links lead somewhere"
import re
from pathlib import Path
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT/'README.md').read_text(encoding='utf-8')


def test_five_lines(tmp_path, monkeypatch):
    (code,) = re.findall(r'```\s*python\n(.*?)```', TEXT, flags=re.S)
    assert len(code.splitlines()) == 5 and code.startswith('from kd_leaf.all import *\n')
    shorter = {'fit_one_cycle(20': 'fit_one_cycle(1', 'epochs=15': 'epochs=1', 'size=128': 'size=32'}
    for long, short in shorter.items():
        assert code.count(long) == 1
        code = code.replace(long, short)
    rng = np.random.default_rng(0)
    photograph = lambda: Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8))
    for cls in ('rust', 'scab'):
        (tmp_path/'leaves'/cls).mkdir(parents=True)
        for i in range(20): photograph().save(tmp_path/'leaves'/cls/f'{i}.jpg')
    photograph().save(tmp_path/'leaf.jpg')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('KD_LEAF_CACHE', str(tmp_path/'cache'))
    monkeypatch.setattr('torch.hub.load_state_dict_from_url', None)  # nothing is downloaded
    names = {}
    exec(code, names)
    assert names['name'] in ('rust', 'scab') and abs(float(names['probabilities'].sum())-1) < 1e-4


def test_it_is_short_and_its_links_lead_somewhere():
    assert len(TEXT.splitlines()) < 100
    links = [l for l in re.findall(r'\]\(([^)\s]+)\)', TEXT) if not l.startswith('http')]
    assert len(links) > 10
    assert [l for l in links if not (ROOT/l.split('#')[0]).exists()] == []
