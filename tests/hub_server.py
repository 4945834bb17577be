"A stand-in for the Hugging Face Hub: one folder of repositories, the calls that huggingface_hub makes to create, upload, list and download"
import base64, functools, hashlib, http.server, json, threading
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = '0123456789abcdef0123456789abcdef01234567'


class Hub(http.server.BaseHTTPRequestHandler):
    "Keeps files under `root`/<repo>; `asked` lists what was requested"
    protocol_version = 'HTTP/1.1'

    def __init__(self, root, asked, *args):
        self.root, self.asked = Path(root), asked
        super().__init__(*args)

    def log_message(self, *args): pass

    def reply(self, status, data=b'', **headers):
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for k, v in (dict(content_type='application/json', content_length=str(len(body))) | headers).items(): self.send_header(k.replace('_', '-'), v)
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(body)

    def missing(self): self.reply(404, dict(error='Repository not found'), x_error_code='RepoNotFound')

    def body(self): return self.rfile.read(int(self.headers.get('content-length') or 0))

    def do_POST(self):
        path, body = urlsplit(self.path).path, self.body()
        self.asked.append(f'POST {path}')
        if self.headers.get('authorization') != 'Bearer a-token': return self.reply(401, dict(error='no token'))
        if path == '/api/repos/create':
            d = json.loads(body)
            name = f"{d.get('organization') or 'me'}/{d['name']}"
            (self.root/name).mkdir(parents=True, exist_ok=True)
            return self.reply(200, dict(url=f'http://{self.headers["host"]}/{name}', name=name, id=name))
        repo = '/'.join(path.split('/')[3:5])
        if '/preupload/' in path:
            return self.reply(200, dict(files=[dict(path=f['path'], uploadMode='regular', shouldIgnore=False) for f in json.loads(body)['files']]))
        if path == '/api/validate-yaml': return self.reply(200, dict(errors=[], warnings=[]))
        for line in filter(None, body.splitlines()):
            if (op := json.loads(line))['key'] == 'file': self.keep(repo, **op['value'])
        self.reply(200, dict(commitUrl=f'http://{self.headers["host"]}/{repo}/commit/{COMMIT}', commitOid=COMMIT, hookOutput=''))

    def keep(self, repo, path, content, encoding):
        f = self.root/repo/path
        f.parent.mkdir(parents=True, exist_ok=True)
        f.write_bytes(base64.b64decode(content))

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.asked.append(f'{self.command} {path}')
        if path == '/api/whoami-v2': return self.reply(200, dict(name='me', type='user', orgs=[], auth=dict(type='access_token')))
        parts = path.strip('/').split('/')
        if parts[:2] == ['api', 'models']:
            repo = self.root/'/'.join(parts[2:4])
            if not repo.is_dir(): return self.missing()
            files = sorted(f.relative_to(repo).as_posix() for f in repo.rglob('*') if f.is_file())
            if 'tree' in parts: return self.reply(200, [dict(type='file', path=f, size=(repo/f).stat().st_size, oid=hashlib.sha1((repo/f).read_bytes()).hexdigest()) for f in files])
            return self.reply(200, dict(id='/'.join(parts[2:4]), sha=COMMIT, siblings=[dict(rfilename=f) for f in files], private=False, tags=[], downloads=0, likes=0))
        f = self.root.joinpath(*parts[:2], *parts[4:])
        if not f.is_file(): return self.missing()
        data = f.read_bytes()
        self.reply(200, data, content_type='application/octet-stream', etag=f'"{hashlib.sha256(data).hexdigest()}"', x_repo_commit=COMMIT)

    do_HEAD = do_GET


@contextmanager
def serve(root):
    "The address of a stand-in that keeps its repositories in `root`, and the list of requests"
    asked = []
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Hub, root, asked)) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        try: yield f'http://127.0.0.1:{httpd.server_port}', asked
        finally: httpd.shutdown()
