const $ = id => document.getElementById(id)
const {classes, threshold, members, examples, about, largest} = JSON.parse($('config').textContent)
const words = name => name.replaceAll('_', ' ')
const percent = p => `${(100 * p).toFixed(p < .1 ? 1 : 0)} %`

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties)
  node.append(...children)
  return node
}

// ---- The model: packed into this page, unpacked and started once

async function unpack(id) {
  const packed = Uint8Array.from(atob($(id).textContent), c => c.charCodeAt(0))
  $(id).remove()
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'))).arrayBuffer()
}

async function start() {
  const [runtime, wasm, model] = await Promise.all(['runtime', 'wasm', 'model'].map(unpack))
  const url = URL.createObjectURL(new Blob([runtime], {type: 'text/javascript'}))
  const ort = await import(url)
  Object.assign(ort.env.wasm, {wasmBinary: wasm, numThreads: 1})
  const session = await ort.InferenceSession.create(model, {executionProviders: ['wasm']})
  const run = async ({data, side}) => {
    const out = await session.run({image: new ort.Tensor('uint8', data, [1, side, side, 3])})
    return Object.fromEntries(Object.entries(out).map(([name, tensor]) => [name, tensor.data]))
  }
  await run({data: new Uint8Array(3 * 64 * 64), side: 64}) // the first run compiles
  return run
}

// ---- Pixels: the centre square, as it is up to `largest` pixels a side; the graph does the rest

async function pixels(blob) {
  const image = await createImageBitmap(blob, {imageOrientation: 'from-image', colorSpaceConversion: 'none'})
  const least = Math.min(image.width, image.height), side = Math.min(least, largest)
  const canvas = Object.assign(document.createElement('canvas'), {width: side, height: side})
  const context = canvas.getContext('2d', {willReadFrequently: true})
  context.imageSmoothingQuality = 'high'
  const [left, top] = [image.width, image.height].map(n => Math.floor((n - least) / 2))
  context.drawImage(image, left, top, least, least, 0, 0, side, side)
  image.close()
  const rgba = context.getImageData(0, 0, side, side).data, data = new Uint8Array(3 * side * side)
  for (let i = 0, j = 0; i < rgba.length; i += 4) {
    data[j++] = rgba[i]; data[j++] = rgba[i + 1]; data[j++] = rgba[i + 2]
  }
  return {data, side}
}

// ---- The answer

function tell(...nodes) { $('answer').replaceChildren(...nodes) }

function show(probabilities, ms) {
  const rows = classes.map((name, k) => ({name: words(name), p: probabilities[k]})).sort((a, b) => b.p - a.p)
  const [{name, p}] = rows, sure = p >= threshold
  tell(
    make('p', {className: sure ? 'name' : 'name doubt'}, sure ? name : 'Not sure'),
    make('p', {className: 'detail'}, sure ? '' : `Perhaps ${name}: `, make('data', {value: p}, percent(p)),
      sure ? ' probable, in ' : `, below the ${percent(threshold)} asked for, in `,
      make('data', {id: 'ms', value: ms}, `${ms.toFixed(0)} ms`)))
  $('classes').replaceChildren(...rows.map(({name, p}) => make('li', {},
    make('span', {}, name), make('data', {value: p}, percent(p)),
    make('meter', {value: p, ariaLabel: name}))))
  $('classes').hidden = false
  $('answer').scrollIntoView({block: 'nearest'})
}

function showVotes(votes) {
  $('votes').tBodies[0].replaceChildren(...members.map((member, m) => {
    const p = [...votes.slice(m * classes.length, (m + 1) * classes.length)], best = Math.max(...p)
    return make('tr', {}, make('td', {}, member), make('td', {}, words(classes[p.indexOf(best)])), make('td', {}, percent(best)))
  }))
  $('votes').hidden = false
}

const tooOld = 'This browser cannot run the model: it needs WebAssembly and DecompressionStream, as browsers since 2023 have.'
const ready = start()
let turn = 0

async function classify(blob, name) {
  const mine = ++turn
  const url = URL.createObjectURL(blob)
  let input
  try { input = await pixels(blob) } catch {
    return tell(make('p', {className: 'error'}, `${name || 'This'} cannot be read as an image: choose a JPEG or a PNG.`))
  }
  if (mine !== turn) return
  $('preview').onload = () => URL.revokeObjectURL(url)
  Object.assign($('preview'), {src: url, alt: `Chosen image: ${name || 'pasted'}`, hidden: false})
  $('hint').hidden = true
  $('drop').classList.add('full')
  let run
  try { run = await ready } catch { return }
  const begin = performance.now()
  const out = await run(input)
  if (mine !== turn) return
  show(out.probabilities, performance.now() - begin)
  if (members) showVotes(out.members)
}

ready.then(
  () => turn || tell(make('p', {id: 'status'}, 'Ready: choose an image.')),
  error => { console.error(error); tell(make('p', {className: 'error'}, tooOld)) })

// ---- Ways in: file, camera, drop, paste, examples

for (const id of ['file', 'camera']) $(id).addEventListener('change', ({target}) => {
  if (target.files[0]) classify(target.files[0], target.files[0].name)
  target.value = ''
})

const files = transfer => [...(transfer?.files ?? [])]
addEventListener('dragover', event => { event.preventDefault(); document.body.classList.add('over') })
addEventListener('dragleave', event => { if (!event.relatedTarget) document.body.classList.remove('over') })
addEventListener('drop', event => {
  event.preventDefault()
  document.body.classList.remove('over')
  const [file] = files(event.dataTransfer)
  if (file) classify(file, file.name)
})
addEventListener('paste', event => {
  const [file] = files(event.clipboardData)
  if (file) classify(file)
  else tell(make('p', {className: 'error'}, 'There is no image in the clipboard.'))
})

for (const {name, image} of examples) {
  const bytes = Uint8Array.from(atob(image), c => c.charCodeAt(0))
  const blob = new Blob([bytes], {type: 'image/png'})
  const picture = make('img', {src: `data:image/png;base64,${image}`, alt: `Example: ${name}`, title: name})
  $('examples').append(make('button', {type: 'button', onclick: () => classify(blob, name)}, picture))
}
$('examples').hidden = !examples.length

$('about').append(...about.flatMap(([term, said]) => [make('dt', {}, term), make('dd', {}, said)]))
