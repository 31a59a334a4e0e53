// A gallery of generated images: what one run yields replaces what it yielded before, and earlier runs stay below, at
// most `props.most` images. `props.value` is {run, items: [{src, name, seed, ...}]}.
let runs = [];

const node = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
};
const grid = node('div', { class: 'kg-gallery' });
element.replaceChildren(grid);

const asUpload = (item) => ({ name: item.name, data: item.src.split(',')[1], weight: 1, crop: null });
// A tab that was never opened has no tray yet: its image waits for it.
const send = (tray, item, tab) => {
  const event = new CustomEvent(`kg-add-${tray}`, { detail: asUpload(item), cancelable: true });
  if (document.dispatchEvent(event)) (window.kgWaiting ??= {})[tray] = event.detail;
  [...document.querySelectorAll('button[role=tab]')].find((one) => one.textContent.trim() === tab)?.click();
};

const large = (item) => {
  const dialog = node('dialog', { class: 'kg-dialog kg-large', 'aria-label': item.name });
  const facts = [item.prompt, `seed ${item.seed} | ${item.steps} steps | guidance ${item.guidance_scale} | ${item.scheduler} | ${item.size}`];
  dialog.append(node('img', { src: item.src, alt: item.prompt }), ...facts.map((fact) => node('p', {}, fact)),
    node('div', { class: 'kg-buttons' },
      node('a', { href: item.src, download: item.name, class: 'kg-primary' }, 'Download'),
      node('button', { type: 'button', class: 'kg-secondary', onclick: () => { dialog.close(); dialog.remove(); } }, 'Close')));
  dialog.addEventListener('close', () => dialog.remove());
  element.append(dialog);
  dialog.showModal();
};

const tile = (item) => {
  const picture = node('img', { src: item.src, alt: item.prompt, draggable: 'true', onclick: () => large(item), tabindex: '0', role: 'button',
    onkeydown: (event) => { if (event.key === 'Enter') large(item); } });
  picture.addEventListener('dragstart', (event) => event.dataTransfer.setData('application/x-kg-image', JSON.stringify(asUpload(item))));
  const made = node('figure', { class: 'kg-tile' }, picture, node('figcaption', {}, node('span', { class: 'kg-seed' }, `${item.label ? `${item.label}, ` : ''}seed ${item.seed}`)));
  const tools = node('div', { class: 'kg-tools' });
  for (const [tray, tab, label, title] of props.actions) tools.append(node('button', { type: 'button', title, 'aria-label': title, onclick: () => send(tray, item, tab) }, label));
  tools.append(node('a', { href: item.src, download: item.name, title: 'Download with its metadata', 'aria-label': 'Download' }, '\u2193'));
  made.append(tools);
  return made;
};

const show = () => {
  const items = runs.flatMap((run) => run.items);
  grid.replaceChildren(...(items.length ? items.map(tile) : [node('p', { class: 'kg-hint' }, props.hint)]));
};

const receive = () => {
  const value = props.value;
  if (value && value.run) {
    const rest = runs.filter((run) => run.run !== value.run);
    let room = props.most;
    runs = [value, ...rest].map((run) => { const items = run.items.slice(0, Math.max(room, 0)); room -= items.length; return { run: run.run, items }; }).filter((run) => run.items.length);
  }
  show();
};
watch('value', receive);
receive();
