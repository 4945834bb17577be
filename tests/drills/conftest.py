"How many, and where the tables go: pytest tests/drills --kills 100 --faults 100 --tables results/drills"
import sys
from pathlib import Path
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # forked processes find work.py


@pytest.fixture(scope='session')
def kills(request): return request.config.getoption('--kills')


@pytest.fixture
def rest(kills):
    "For what is left out of the small part that CI does"
    if kills < 10: pytest.skip('of the whole drill: pytest tests/drills --kills 100 --faults 100')


@pytest.fixture(scope='session')
def faults(request): return request.config.getoption('--faults')


@pytest.fixture(scope='session')
def tables(request):
    folder = request.config.getoption('--tables')
    if folder: Path(folder).mkdir(parents=True, exist_ok=True)
    return folder and Path(folder).resolve()
