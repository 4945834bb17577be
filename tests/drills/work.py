"What is drilled: images to a store, teachers, caches and students, tables and figures, an ONNX file, a page. Seconds in all"
import os
from pathlib import Path

STUDY = '''
name = "drill"
title = "Drill"
dataset = "./leaves"
grid = {teachers = ["cnn4"], students = ["cnn4"], balance = ["none"]}
teacher = {epochs = 2, bs = 16, mode = "fp32"}
student = {epochs = 2, bs = 16, fraction = 0.5, views = 2, mode = "fp32"}
kd = {loss = "soft_target", temperature = 4.0, alpha = 0.7, unlabelled = true}
[profile.quick]
size = 16
seeds = [0, 1]
'''
IMAGES = 24  # of each of two classes


def prepare(folder):
    "A folder to work in: drawn leaves as files, and a study of them"
    from PIL import Image
    from kd_leaf.data.synthetic import draw_leaf
    for disease in ('rust', 'scab'):
        (folder/'leaves'/disease).mkdir(parents=True)
        for i in range(IMAGES): Image.fromarray(draw_leaf(disease, i=i, size=24)).save(folder/'leaves'/disease/f'{i}.png')
    (folder/'studies').mkdir()
    (folder/'studies/drill.toml').write_text(STUDY)


def phase(name): Path('phase').write_text(name)


def do(folder, engine, address, runtime):
    "All of it, in a folder made by `prepare`, the page where there is a runtime; the process leads a group of its own, so that its workers can be killed with it"
    os.setsid()
    os.chdir(folder)
    os.environ['KD_LEAF_CACHE'] = str(folder/'cache')
    from kd_leaf.data.store import image_store
    from kd_leaf.deploy.export import export_onnx
    from kd_leaf.deploy.page import make_page
    from kd_leaf.models.zoo import create_model
    from kd_leaf.report.build import write_report
    from kd_leaf.study.config import load_study
    from kd_leaf.study.files import weights_path
    from kd_leaf.study.runner import run_study
    phase('store')
    store = image_store('./leaves', 16)
    phase('study')
    runs = run_study(load_study('drill', 'quick'), device='cpu', engine=engine, workers=None if engine == 'serial' else 2, address=address)
    phase('report')
    write_report('drill', 'quick')
    phase('onnx')
    student = runs[(runs.role == 'student') & (runs.teacher != '')].iloc[0]
    model = create_model('cnn4', len(store.vocab), weights_path(student.key)).eval()
    file = export_onnx(model, 'student.onnx', store.vocab, 16, images=store.images[:8]).path
    if runtime:
        phase('page')
        make_page(file, [], 'leaf.html', runtime=runtime)
    phase('done')
