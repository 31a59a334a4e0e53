// The shipped example images: a click adds one to the tray `props.tray`.
const strip = document.createElement('div');
strip.className = 'kg-strip';
for (const item of props.value || []) {
  const button = document.createElement('button');
  button.type = 'button';
  button.title = button.ariaLabel = `Add ${item.name}`;
  const picture = document.createElement('img');
  picture.src = `data:image/png;base64,${item.data}`;
  picture.alt = item.name;
  button.append(picture);
  button.addEventListener('click', () => document.dispatchEvent(new CustomEvent(`kg-add-${props.tray}`, { detail: item })));
  strip.append(button);
}
element.replaceChildren(strip);
