// Draws turns. Texts go in as text, never as HTML.

function element(tag, properties = {}, ...children) {
  const found = Object.assign(document.createElement(tag), properties);
  found.append(...children);
  return found;
}

const button = (text, action) => {
  const found = element('button', { type: 'button', textContent: text });
  found.addEventListener('click', action);
  return found;
};

// Enter that ends a composition of an input method is not for us. Safari tells so by 229 only.
const isPlainEnter = (event) => event.key === 'Enter' && !event.shiftKey
  && !event.isComposing && event.keyCode !== 229;

function fold(title, text, open = false) {
  return element('details', { open }, element('summary', { textContent: title }),
    element('pre', { textContent: text, dir: 'auto' }));
}

const seconds = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

// Speed, wait and what was cached of an answer.
function facts(turn) {
  const { usage, timings } = turn;
  const parts = [];
  if (usage) parts.push(`${usage.completion_tokens} tokens`);
  if (timings?.predicted_per_second) {
    parts.push(`${timings.predicted_per_second.toFixed(1)} tokens/s`);
  }
  if (usage) {
    const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
    parts.push(`prompt ${usage.prompt_tokens} (${cached} cached)`);
  }
  if (turn.firstMs !== undefined) parts.push(`first token after ${seconds(turn.firstMs)}`);
  if (timings) parts.push(`waited ${seconds(timings.queue_ms)}`);
  if (turn.seed) parts.push(`seed ${turn.seed}`);
  if (turn.stopped) parts.push('stopped');
  else if (turn.reason === 'length') parts.push('cut at the limit of tokens');
  return parts.join(' · ');
}

function drawUser(turn, act) {
  const text = element('div', { className: 'text', textContent: turn.content, dir: 'auto' });
  const box = element('article', { className: 'turn user' },
    element('h2', { textContent: 'You' }), text);
  const edit = button('Edit', () => {
    const area = element('textarea', { value: turn.content, rows: 3 });
    area.setAttribute('aria-label', 'Message, edited');
    const send = () => { if (area.value.trim()) act.edit(turn, area.value); };
    area.addEventListener('keydown', (event) => {
      if (isPlainEnter(event)) { event.preventDefault(); send(); }
      if (event.key === 'Escape') act.draw();
    });
    box.replaceChildren(area, element('div', { className: 'row' },
      button('Send', send), button('Cancel', act.draw)));
    area.focus();
  });
  if (!act.busy()) box.append(element('div', { className: 'row' }, edit));
  return box;
}

function drawTool(turn) {
  return element('article', { className: 'turn tool' },
    fold(`Result of ${turn.name}`, turn.content));
}

// An answer; returns what further pieces go to.
function drawAnswer(turn, act, last) {
  const thought = element('details', { hidden: !turn.reasoning },
    element('summary', { textContent: 'Reasoning' }),
    element('div', { className: 'text', textContent: turn.reasoning, dir: 'auto' }));
  const text = element('div', { className: 'text', dir: 'auto' });
  const tokens = new Tokens(text);
  for (const [piece, entries] of turn.pieces) tokens.add(piece, entries);
  tokens.flush();
  const calls = element('div');
  const end = element('div', { className: 'row' });
  const box = element('article', { className: 'turn assistant' },
    element('h2', { textContent: turn.model }), thought, text, calls, end);
  const drawCalls = () => {
    calls.replaceChildren(...turn.calls.map((call) => fold(`Call of ${call.name}`, call.arguments)));
  };
  drawCalls();
  if (turn.live) {
    box.setAttribute('aria-busy', 'true');
    end.append(element('span', { className: 'waits', textContent: 'Waiting for the first token' }));
  } else {
    if (turn.pieces.some(([, entries]) => entries.length)) followTokens(text);
    if (turn.fault) box.append(element('p', { className: 'fault', textContent: turn.fault }));
    end.append(element('span', { className: 'facts', textContent: facts(turn) }));
    // A browser has a clipboard for pages of this machine, and for those over TLS.
    if (navigator.clipboard && turn.content) {
      end.append(button('Copy', () => navigator.clipboard.writeText(turn.content)));
    }
    if (last && !act.busy()) end.append(button('Regenerate', act.regenerate));
    if (last && turn.calls.length) box.append(askResults(turn, act));
  }
  return {
    box,
    think(piece) {
      thought.hidden = false;
      thought.lastChild.append(piece);
    },
    say: (piece, entries) => tokens.add(piece, entries),
    drawCalls,
    working(note) { end.firstChild.textContent = note; },
  };
}

// Boxes for what the tools that were called have found.
function askResults(turn, act) {
  const areas = turn.calls.map((call) => {
    const area = element('textarea', { rows: 2 });
    area.setAttribute('aria-label', `Result of ${call.name}`);
    return area;
  });
  const labels = areas.map((area, i) => element('label', {}, `Result of ${turn.calls[i].name}`, area));
  const send = button('Send results', () => act.answerCalls(turn, areas.map((area) => area.value)));
  return element('div', {}, ...labels, element('div', { className: 'row' }, send));
}
