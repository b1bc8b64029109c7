// The conversation: what was said, and what the buttons and keys do.

const TURNS = 'slmq.turns';
const LOAD_EVERY_MS = 2000;
const log = byId('log');
const ask = byId('ask');
let turns = JSON.parse(sessionStorage.getItem(TURNS) ?? '[]');
let running = null; // aborts the request that is under way

const act = {
  busy: () => running !== null,
  draw,
  edit(turn, content) {
    turns.splice(turns.indexOf(turn), Infinity, { role: 'user', content });
    answer();
  },
  regenerate() {
    turns.pop();
    answer();
  },
  answerCalls(turn, results) {
    turn.calls.forEach((call, i) => {
      turns.push({ role: 'tool', id: call.id, name: call.name, content: results[i] });
    });
    answer();
  },
};

function draw() {
  const drawn = turns.map((turn, i) => {
    if (turn.role === 'user') return drawUser(turn, act);
    if (turn.role === 'tool') return drawTool(turn);
    return drawAnswer(turn, act, i === turns.length - 1).box;
  });
  if (!drawn.length) {
    drawn.push(element('p', { className: 'empty', textContent: 'Nothing has been said yet.' }));
  }
  log.replaceChildren(...drawn);
  byId('send').hidden = act.busy();
  byId('stop').hidden = !act.busy();
  log.scrollTop = log.scrollHeight;
  sessionStorage.setItem(TURNS, JSON.stringify(turns.filter((turn) => !turn.live)));
}

function messages() {
  const system = byId('system').value.trim();
  const found = system ? [{ role: 'system', content: system }] : [];
  for (const turn of turns) {
    if (turn.role === 'user') found.push({ role: 'user', content: turn.content });
    if (turn.role === 'tool') {
      found.push({ role: 'tool', tool_call_id: turn.id, content: turn.content });
    }
    if (turn.role !== 'assistant') continue;
    const message = { role: 'assistant', content: turn.content };
    if (turn.reasoning) message.reasoning_content = turn.reasoning;
    if (turn.calls.length) {
      message.tool_calls = turn.calls.map(({ id, name, arguments: text }) => (
        { id, type: 'function', function: { name, arguments: text } }));
    }
    found.push(message);
  }
  return found;
}

function report(text) {
  byId('problem').textContent = text;
  byId('problem').hidden = !text;
}

async function answer() {
  const fields = settings();
  report('');
  if (fields === null) {
    openSettings(true);
    report('A box of the settings does not hold JSON.');
    draw();
    return;
  }
  const model = byId('model').value;
  const body = {
    model, messages: messages(), stream: true, stream_options: { include_usage: true }, ...fields,
  };
  const turn = {
    role: 'assistant', model, content: '', reasoning: '', calls: [], pieces: [], live: true,
  };
  turns.push(turn);
  running = new AbortController();
  draw();
  const view = drawAnswer(turn, act, true);
  log.lastChild.replaceWith(view.box);
  log.scrollTop = log.scrollHeight;
  try {
    await take(turn, view, body);
  } catch (error) {
    if (running.signal.aborted) turn.stopped = true;
    else turn.fault = error.retryAfter
      ? `${error.message} Worth another try in ${error.retryAfter} s.` : error.message;
  }
  delete turn.live;
  running = null;
  draw();
  showLoad();
}

async function take(turn, view, body) {
  const beganMs = performance.now();
  const response = await request('v1/chat/completions', {
    method: 'POST', body: JSON.stringify(body), signal: running.signal,
  });
  turn.seed = response.headers.get('x-slmq-seed');
  const expectedMs = Number(response.headers.get('x-slmq-expected-ms'));
  view.working(`First token expected after ${seconds(expectedMs)}`);
  for await (const event of events(response)) {
    if (event.usage) Object.assign(turn, { usage: event.usage, timings: event.timings });
    const choice = event.choices[0];
    if (!choice) continue;
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
    if (choice.finish_reason) turn.reason = choice.finish_reason;
    if (!Object.keys(choice.delta).some((name) => name !== 'role')) continue;
    turn.firstMs ??= performance.now() - beganMs;
    hear(turn, view, choice);
    view.working(`First token after ${seconds(turn.firstMs)}`);
    if (atEnd) log.scrollTop = log.scrollHeight;
  }
}

function hear(turn, view, { delta, logprobs }) {
  if (delta.reasoning_content) {
    turn.reasoning += delta.reasoning_content;
    view.think(delta.reasoning_content);
  }
  if (delta.content) {
    const entries = logprobs?.content ?? [];
    turn.content += delta.content;
    turn.pieces.push([delta.content, entries]);
    view.say(delta.content, entries);
  }
  for (const call of delta.tool_calls ?? []) {
    const known = turn.calls[call.index]
      ??= { id: call.id, name: call.function.name, arguments: '' };
    known.arguments += call.function.arguments ?? '';
    view.drawCalls();
  }
}

function send() {
  const content = ask.value.trim();
  if (!content || running) return;
  turns.push({ role: 'user', content });
  ask.value = '';
  fit();
  answer();
}

const fit = () => {
  ask.style.height = 'auto';
  ask.style.height = `${ask.scrollHeight + 2}px`;
};

function openSettings(open) {
  byId('settings').hidden = !open;
  byId('open-settings').setAttribute('aria-expanded', String(open));
}

async function showLoad() {
  if (document.hidden) return;
  let text = 'no connection';
  try {
    const found = await measured(byId('model').value);
    if ('vllm:num_requests_running' in found) {
      const full = 100 * found['vllm:kv_cache_usage_perc'];
      const prompt = found['vllm:prompt_tokens_total'];
      const hits = prompt ? 100 * found['vllm:prefix_cache_hits_total'] / prompt : 0;
      text = `${found['vllm:num_requests_running']} running, `
        + `${found['vllm:num_requests_waiting']} waiting · cache ${full.toFixed(0)}% full, `
        + `${hits.toFixed(0)}% of prompts from it`;
    } else text = 'not loaded yet';
  } catch { /* the text says it */ }
  byId('load').textContent = text;
}

function setTheme(theme) {
  const name = { light: 'light', dark: 'dark' }[theme] ?? 'as the system';
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  byId('theme').setAttribute('aria-label', `Theme: ${name}`);
  byId('theme').title = `Theme: ${name}`;
  localStorage.setItem('slmq.theme', theme);
}

async function begin() {
  restoreSettings();
  setTheme(localStorage.getItem('slmq.theme') ?? '');
  draw();
  byId('composer').addEventListener('submit', (event) => { event.preventDefault(); send(); });
  ask.addEventListener('keydown', (event) => {
    if (isPlainEnter(event)) { event.preventDefault(); send(); }
  });
  ask.addEventListener('input', fit);
  addEventListener('keydown', (event) => {
    if (event.key === 'Escape' && !event.isComposing) running?.abort();
  });
  byId('stop').addEventListener('click', () => running?.abort());
  byId('new').addEventListener('click', () => {
    running?.abort();
    turns = [];
    report('');
    draw();
    ask.focus();
  });
  byId('theme').addEventListener('click', () => {
    const order = ['', 'dark', 'light'];
    const now = document.documentElement.dataset.theme ?? '';
    setTheme(order[(order.indexOf(now) + 1) % order.length]);
  });
  byId('open-settings').addEventListener('click', () => openSettings(byId('settings').hidden));
  byId('options').addEventListener('input', () => { saveSettings(); settings(); });
  byId('reset').addEventListener('click', () => {
    localStorage.removeItem(SAVED);
    restoreSettings();
    settings();
  });
  try {
    const found = await models();
    byId('model').replaceChildren(...found.map(({ id }) => new Option(id, id)));
    const kept = localStorage.getItem('slmq.model');
    if (found.some(({ id }) => id === kept)) byId('model').value = kept;
  } catch (error) {
    report(error.message);
  }
  byId('model').addEventListener('change', () => {
    localStorage.setItem('slmq.model', byId('model').value);
    showLoad();
  });
  showLoad();
  setInterval(showLoad, LOAD_EVERY_MS);
  ask.focus();
}

begin();
