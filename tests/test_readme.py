"The README's examples, word for word but for the length of training, on images that the test makes"
import re
from pathlib import Path
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


def test_examples(tmp_path, monkeypatch):
    code = '\n'.join(re.findall(r'```\s*python\n(.*?)```', (ROOT/'README.md').read_text(), flags=re.S))
    code, n = re.subn(r'fit_one_cycle\(20|epochs=15|size=128', lambda m: {'f': 'fit_one_cycle(1', 'e': 'epochs=1', 's': 'size=32'}[m[0][0]], code)
    assert n == 5
    rng = np.random.default_rng(0)
    for cls in ('rust', 'scab'):
        (tmp_path/'leaves'/cls).mkdir(parents=True)
        for i in range(20): Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path/'leaves'/cls/f'{i}.jpg')
    Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path/'leaf.jpg')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('KD_LEAF_CACHE', str(tmp_path/'cache'))
    names = {}
    exec(code, names)
    assert len(names['students']) == 2
    assert names['name'] in ('rust', 'scab') and abs(float(names['probabilities'].sum())-1) < 1e-4
