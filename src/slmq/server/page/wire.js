// Talks to the server: requests with the key, streams of events, and the load from /metrics.

const byId = (id) => document.getElementById(id);
const KEY = 'slmq.key';

function askForKey() {
  const dialog = byId('key-dialog');
  return new Promise((resolve) => {
    dialog.addEventListener('close', () => {
      sessionStorage.setItem(KEY, byId('key').value);
      resolve();
    }, { once: true });
    if (!dialog.open) dialog.showModal();
  });
}

async function request(path, options = {}) {
  const headers = { ...options.headers };
  const key = sessionStorage.getItem(KEY);
  if (key) headers.authorization = `Bearer ${key}`;
  if (options.body) headers['content-type'] = 'application/json';
  const response = await fetch(path, { ...options, headers });
  if (response.status === 401) {
    await askForKey();
    return request(path, options);
  }
  if (!response.ok) {
    const told = await response.json().catch(() => null);
    const fault = new Error(told?.error?.message ?? `status ${response.status}`);
    fault.retryAfter = response.headers.get('retry-after');
    throw fault;
  }
  return response;
}

// What the `data:` lines of a stream hold, until the last one says that it is.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error('The server ended the answer before it was complete.');
    const blocks = (rest + value).split('\n\n');
    rest = blocks.pop();
    for (const block of blocks) {
      if (!block.startsWith('data: ')) continue;
      const data = block.slice(6);
      if (data === '[DONE]') return;
      const found = JSON.parse(data);
      if (found.error) throw new Error(found.error.message);
      yield found;
    }
  }
}

async function models() {
  return (await (await request('v1/models')).json()).data;
}

// Values of a model in the format of Prometheus, by name.
async function measured(model) {
  const text = await (await request('metrics')).text();
  const found = {};
  for (const line of text.split('\n')) {
    const match = /^([\w:]+)\{model_name="([^"]*)"\} (\S+)$/.exec(line);
    if (match && match[2] === model) found[match[1]] = Number(match[3]);
  }
  return found;
}
