// Search, light and dark, copy buttons: all there is of script on the site. Without it the pages read just as well.
const root = document.currentScript.dataset.root;

// Light or dark: the system's choice until the reader makes one.
const kept = (() => { try { return localStorage.theme; } catch { return null; } })();
if (kept) document.documentElement.dataset.theme = kept;

function toggleTheme() {
  const dark = matchMedia('(prefers-color-scheme: dark)').matches;
  const now = document.documentElement.dataset.theme || (dark ? 'dark' : 'light');
  document.documentElement.dataset.theme = now === 'dark' ? 'light' : 'dark';
  try { localStorage.theme = document.documentElement.dataset.theme; } catch { /* then for this page only */ }
}

function addCopyButton(block) {
  const button = document.createElement('button');
  button.className = 'copy';
  button.type = 'button';
  button.textContent = 'Copy';
  button.onclick = async () => {
    await navigator.clipboard.writeText(block.querySelector('code').textContent);
    button.textContent = 'Copied';
    setTimeout(() => { button.textContent = 'Copy'; }, 1500);
  };
  block.append(button);
}

// search-index.js calls this with [page, heading, address, text] of each section; it is loaded when first needed.
let sections = null;
window.kdSections = found => { sections = found; };

function loadSections(then) {
  if (sections) return then();
  const script = document.createElement('script');
  script.src = `${root}/search-index.js`;
  script.onload = then;
  document.head.append(script);
}

function score([page, heading, , text], words) {
  const [p, h, t] = [page, heading, text].map(s => s.toLowerCase());
  let sum = 0;
  for (const w of words) {
    const here = h === w ? 60 : h.startsWith(w) ? 30 : h.includes(w) ? 20 : p.includes(w) ? 10 : t.includes(w) ? 1 : 0;
    if (!here) return 0;
    sum += here;
  }
  return sum;
}

function excerpt(text, word) {
  const at = Math.max(0, text.toLowerCase().indexOf(word) - 40);
  return (at ? '… ' : '') + text.slice(at, at + 130) + (at + 130 < text.length ? ' …' : '');
}

function search(query, list) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  const ranked = sections.map(s => [score(s, words), s]).filter(([n]) => words.length && n);
  const best = ranked.sort((a, b) => b[0] - a[0]).slice(0, 12);
  list.replaceChildren(...best.map(([, [page, heading, url, text]]) => {
    const item = document.createElement('li'), link = document.createElement('a'), more = document.createElement('small');
    link.href = `${root}/${url}`;
    link.textContent = heading && heading !== page ? `${heading} – ${page}` : page;
    more.textContent = excerpt(text, words[0]);
    link.append(more);
    item.append(link);
    return item;
  }));
  if (words.length && !best.length) list.textContent = 'Nothing found.';
  list.hidden = !words.length;
}

document.addEventListener('DOMContentLoaded', () => {
  document.getElementById('theme').onclick = toggleTheme;
  document.querySelectorAll('main div.sourceCode').forEach(addCopyButton);
  const box = document.getElementById('query'), list = document.getElementById('found');
  box.oninput = () => loadSections(() => search(box.value, list));
  box.onkeydown = e => {
    if (e.key === 'Enter') list.querySelector('a')?.click();
    if (e.key === 'Escape') { box.value = ''; list.hidden = true; box.blur(); }
  };
  list.onclick = () => { list.hidden = true; };
  document.addEventListener('click', e => { if (!e.target.closest('.search')) list.hidden = true; });
  document.addEventListener('keydown', e => {
    if (e.key === '/' && !/INPUT|TEXTAREA/.test(document.activeElement.tagName)) { e.preventDefault(); box.focus(); }
  });
});
