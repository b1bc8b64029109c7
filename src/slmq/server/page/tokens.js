// Tokens with their probabilities: by pointer, by touch, and by the arrow keys.

const percent = (logprob) => {
  const share = Math.exp(logprob) * 100;
  return share < 0.1 && share > 0 ? '<0.1%' : `${share.toFixed(1)}%`;
};
const visible = (text) => text.replaceAll('\n', '⏎').replaceAll('\t', '⇥') || '∅';

// Lays tokens under a text that they make; the end token makes none of it.
class Tokens {
  constructor(box) {
    this.box = box;
    this.decoder = new TextDecoder();
    this.waiting = [];
    this.text = '';
  }

  add(text, entries) {
    this.text += text;
    this.waiting.push(...entries);
    while (this.waiting.length && this.text) {
      const entry = this.waiting[0];
      const said = this.decoder.decode(new Uint8Array(entry.bytes ?? []), { stream: true });
      this.waiting.shift();
      if (!said) continue;
      const part = this.text.startsWith(said) ? said
        : this.text.startsWith(said.trimStart()) ? said.trimStart() : '';
      if (!part) continue;
      this.box.append(token(part, entry));
      this.text = this.text.slice(part.length);
    }
    if (!entries.length) this.flush();
  }

  flush() {
    if (this.text) this.box.append(this.text);
    this.text = '';
  }
}

function token(text, entry) {
  const span = document.createElement('span');
  span.className = 'token';
  span.textContent = text;
  span.style.setProperty('--doubt', (1 - Math.exp(entry.logprob)).toFixed(3));
  span.entry = entry;
  return span;
}

function showTip(span) {
  const tip = byId('tip');
  const table = document.createElement('table');
  const { entry } = span;
  const ranked = [...entry.top_logprobs];
  if (!ranked.some((one) => one.token === entry.token)) ranked.push(entry);
  for (const one of ranked) {
    const row = table.insertRow();
    row.className = one.token === entry.token ? 'chosen' : '';
    const code = document.createElement('code');
    code.textContent = visible(one.token);
    row.insertCell().textContent = percent(one.logprob);
    row.insertCell().append(code);
  }
  tip.replaceChildren(table);
  tip.hidden = false;
  const at = span.getClientRects()[0];
  const below = at.bottom + tip.offsetHeight + 8 < innerHeight;
  tip.style.top = `${below ? at.bottom + 6 : Math.max(4, at.top - tip.offsetHeight - 6)}px`;
  tip.style.left = `${Math.max(4, Math.min(at.left, innerWidth - tip.offsetWidth - 8))}px`;
  return ranked.map((one) => `${visible(one.token)} ${percent(one.logprob)}`).join(', ');
}

const hideTip = () => { byId('tip').hidden = true; };

function followTokens(box) {
  box.tabIndex = 0;
  box.setAttribute('aria-description', 'Left and right arrow keys tell token probabilities.');
  let here = null;
  const move = (span) => {
    here?.classList.remove('here');
    here = span;
    if (!span) return hideTip();
    span.classList.add('here');
    byId('said').textContent = showTip(span);
  };
  box.addEventListener('pointerover', (event) => {
    if (event.target.entry) showTip(event.target);
  });
  box.addEventListener('pointerout', hideTip);
  box.addEventListener('blur', () => move(null));
  box.addEventListener('keydown', (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = [...box.querySelectorAll('.token')];
    const next = here ? all.indexOf(here) + step : 0;
    if (all[next]) move(all[next]);
  });
}
