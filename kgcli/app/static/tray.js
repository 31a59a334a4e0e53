// A tray of images: add by drop, paste or choice; drag to reorder; crop; weigh; remove. `props.value` is the list of
// uploads that the server reads: {name, data, weight, crop}. Nothing is uploaded to a folder of the server.
const most = props.most, side = 96;
let items = [], dragged = null, sent = null;

const node = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? '' : value);
  }
  made.append(...children);
  return made;
};
const kindOf = (data) => data.startsWith('iVBOR') ? 'png' : data.startsWith('UklGR') ? 'webp' : data.startsWith('R0lG') ? 'gif' : 'jpeg';
const source = (item) => `data:image/${kindOf(item.data)};base64,${item.data}`;

const picker = node('input', { type: 'file', accept: 'image/*', multiple: most > 1, class: 'kg-file', 'aria-label': props.title });
const list = node('ol', { class: 'kg-items' });
const add = node('button', { type: 'button', class: 'kg-add', onclick: () => picker.click() }, node('span', { class: 'kg-plus', 'aria-hidden': 'true' }, '+'), node('span', {}, props.hint));
const note = node('p', { class: 'kg-note', role: 'status' });
const box = node('div', { class: `kg-tray${props.compact ? ' kg-compact' : ''}`, tabindex: '0', 'aria-label': props.title }, list, add, note, picker);
element.replaceChildren(box);

const publish = () => { sent = JSON.stringify(items); props.value = JSON.parse(sent); show(); trigger('change'); };

const readFile = (file) => new Promise((done, failed) => {
  const reader = new FileReader();
  reader.onload = () => done({ name: file.name || 'image.png', data: String(reader.result).split(',')[1] || '', weight: 1, crop: null });
  reader.onerror = () => failed(reader.error);
  reader.readAsDataURL(file);
});

const take = async (files) => {
  note.textContent = '';
  for (const file of files) {
    if (most > 1 && items.length >= most) { note.textContent = `At most ${most} images; the others were left out.`; break; }
    if (file.size > props.max_bytes) { note.textContent = `${file.name} is larger than ${props.max_bytes >> 20} MiB.`; continue; }
    const item = await readFile(file);
    items = most === 1 ? [item] : [...items, item];
  }
  publish();
};

const put = (item) => { items = most === 1 ? [item] : [...items, item].slice(0, most); publish(); };
document.addEventListener(`kg-add-${props.tray}`, (event) => { event.preventDefault(); put(event.detail); });

picker.addEventListener('change', () => { take([...picker.files]); picker.value = ''; });
box.addEventListener('paste', (event) => { const files = [...event.clipboardData.files]; if (files.length) { event.preventDefault(); take(files); } });
box.addEventListener('dragover', (event) => { event.preventDefault(); box.classList.add('kg-over'); });
box.addEventListener('dragleave', () => box.classList.remove('kg-over'));
box.addEventListener('drop', async (event) => {
  event.preventDefault();
  box.classList.remove('kg-over');
  const files = [...event.dataTransfer.files];
  if (files.length) return take(files);
  const own = event.dataTransfer.getData('application/x-kg-image');  // an image of this page's gallery
  if (own) put(JSON.parse(own));
});

const move = (from, to) => {
  if (to < 0 || to >= items.length || from === to) return;
  const moved = [...items];
  moved.splice(to, 0, ...moved.splice(from, 1));
  items = moved;
  publish();
};

const insertTag = (number) => {
  const area = document.querySelector(`${props.prompt} textarea`);
  if (!area) return;
  const tag = `<image:-${number}>`, at = area.selectionStart ?? area.value.length;
  area.setRangeText(tag, at, area.selectionEnd ?? at, 'end');
  area.dispatchEvent(new Event('input', { bubbles: true }));
  area.focus();
};

const control = (label, title, action, disabled = false) => node('button', { type: 'button', title, 'aria-label': title, disabled, onclick: action }, label);

const card = (item, index) => {
  const number = index + 1;
  const picture = node('img', { src: source(item), alt: item.name, draggable: false });
  if (item.crop) {
    const [left, top, right, bottom] = item.crop;
    picture.style.clipPath = `inset(${top * 100}% ${(1 - right) * 100}% ${(1 - bottom) * 100}% ${left * 100}%)`;
  }
  const made = node('li', { class: 'kg-item', draggable: most > 1, 'data-index': index });
  made.append(node('div', { class: 'kg-picture' }, picture, ...(props.prompt ? [node('button', { type: 'button', class: 'kg-number', title: `Write <image:-${number}> into the prompt`, onclick: () => insertTag(number) }, String(number))] : [])));
  if (props.weights) {
    const shown = node('output', {}, item.weight.toFixed(2));
    const slider = node('input', { type: 'range', min: 0, max: 2, step: 0.05, value: item.weight, 'aria-label': `Weight of image ${number}`,
      title: '0 ignores the image, 1 is as it is, 2 uses the image alone',
      oninput: () => { shown.textContent = Number(slider.value).toFixed(2); },
      onchange: () => { items[index].weight = Number(slider.value); publish(); } });
    made.append(node('label', { class: 'kg-weight' }, 'weight', slider, shown));
  }
  const tools = node('div', { class: 'kg-tools' });
  if (most > 1) tools.append(control('\u2190', `Move image ${number} left`, () => move(index, index - 1), index === 0), control('\u2192', `Move image ${number} right`, () => move(index, index + 1), index === items.length - 1));
  if (props.crops) tools.append(control('\u2702', `Crop image ${number}`, () => crop(index)));
  tools.append(control('\u2715', `Remove image ${number}`, () => { items = items.filter((_, at) => at !== index); publish(); }));
  made.append(tools);
  made.addEventListener('dragstart', (event) => { dragged = index; event.dataTransfer.effectAllowed = 'move'; event.dataTransfer.setData('text/plain', item.name); });
  made.addEventListener('dragend', () => { dragged = null; });
  made.addEventListener('dragover', (event) => { if (dragged !== null) { event.preventDefault(); event.stopPropagation(); } });
  made.addEventListener('drop', (event) => { if (dragged !== null) { event.preventDefault(); event.stopPropagation(); move(dragged, index); } });
  return made;
};

// Crop: drag a box over the image in a dialog; arrow keys are not needed, since the whole image is the default.
const crop = (index) => {
  const item = items[index];
  let chosen = item.crop || [0, 0, 1, 1], start = null;
  const frame = node('div', { class: 'kg-frame' }), picture = node('img', { src: source(item), alt: item.name, draggable: false });
  const stage = node('div', { class: 'kg-stage' }, picture, frame);
  const place = () => { const [l, t, r, b] = chosen; Object.assign(frame.style, { left: `${l * 100}%`, top: `${t * 100}%`, width: `${(r - l) * 100}%`, height: `${(b - t) * 100}%` }); };
  const at = (event) => { const r = stage.getBoundingClientRect(); return [Math.min(1, Math.max(0, (event.clientX - r.left) / r.width)), Math.min(1, Math.max(0, (event.clientY - r.top) / r.height))]; };
  stage.addEventListener('pointerdown', (event) => { start = at(event); stage.setPointerCapture(event.pointerId); });
  stage.addEventListener('pointermove', (event) => {
    if (!start) return;
    const [x, y] = at(event);
    chosen = [Math.min(start[0], x), Math.min(start[1], y), Math.max(start[0], x), Math.max(start[1], y)];
    place();
  });
  stage.addEventListener('pointerup', () => { start = null; if (chosen[2] - chosen[0] < 0.03 || chosen[3] - chosen[1] < 0.03) { chosen = [0, 0, 1, 1]; place(); } });
  const dialog = node('dialog', { class: 'kg-dialog', 'aria-label': 'Crop' });
  const close = (value) => { dialog.close(); dialog.remove(); if (value !== undefined) { items[index].crop = value; publish(); } };
  dialog.append(node('p', {}, 'Drag a box over the part to keep.'), stage, node('div', { class: 'kg-buttons' },
    node('button', { type: 'button', class: 'kg-secondary', onclick: () => close(null) }, 'Whole image'),
    node('button', { type: 'button', class: 'kg-secondary', onclick: () => close() }, 'Cancel'),
    node('button', { type: 'button', class: 'kg-primary', onclick: () => close(chosen.every((v, i) => v === [0, 0, 1, 1][i]) ? null : chosen) }, 'Crop')));
  element.append(dialog);
  place();
  dialog.showModal();
};

const show = () => {
  list.replaceChildren(...items.map(card));
  box.classList.toggle('kg-empty', items.length === 0);
  add.hidden = most > 1 && items.length >= most;
};

const receive = () => {
  const value = JSON.stringify(props.value || []);
  if (value === sent) return;
  sent = value;
  items = JSON.parse(value);
  show();
};
watch('value', receive);
receive();
show();
const waiting = (window.kgWaiting ??= {})[props.tray];
if (waiting) {
  delete window.kgWaiting[props.tray];
  setTimeout(() => put(waiting), 300);  // gradio sets the empty value once more after this
}
