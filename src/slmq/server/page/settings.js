// The options of a request, kept from one visit to the next.

const SAVED = 'slmq.settings';
const NUMBERS = [...document.querySelectorAll('#options input[type=number]')].map((box) => box.id);
const TEXTS = ['system', 'reasoning', 'schema', 'tools', 'tool_choice'];

function saveSettings() {
  const kept = { probabilities: byId('probabilities').checked };
  for (const name of [...NUMBERS, ...TEXTS]) kept[name] = byId(name).value;
  localStorage.setItem(SAVED, JSON.stringify(kept));
}

function restoreSettings() {
  const kept = JSON.parse(localStorage.getItem(SAVED) ?? '{}');
  for (const name of [...NUMBERS, ...TEXTS]) byId(name).value = kept[name] ?? '';
  byId('probabilities').checked = kept.probabilities ?? false;
}

// The JSON in a box; undefined if it is empty. What is wrong with it is said beside it.
function jsonIn(name, check) {
  const box = byId(name);
  const fault = byId(`${name}-fault`);
  const text = box.value.trim();
  let found;
  fault.textContent = '';
  try {
    if (text) {
      found = JSON.parse(text);
      check(found);
    }
  } catch (error) {
    fault.textContent = error.message;
    found = null;
  }
  box.setAttribute('aria-invalid', String(found === null));
  return found;
}

const isObject = (value) => {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new Error('Expected a JSON object.');
  }
};
const isList = (value) => {
  if (!Array.isArray(value)) throw new Error('Expected a list of functions.');
  value.forEach(isObject);
};

// Fields of a request; null if a box holds no JSON.
function settings() {
  const fields = {};
  for (const name of NUMBERS) {
    if (byId(name).value !== '') fields[name] = Number(byId(name).value);
  }
  if (byId('reasoning').value) fields.reasoning_effort = byId('reasoning').value;
  const schema = jsonIn('schema', isObject);
  const tools = jsonIn('tools', isList);
  if (schema === null || tools === null) return null;
  if (schema) {
    fields.response_format = { type: 'json_schema', json_schema: { name: 'answer', schema } };
  }
  if (tools?.length) {
    fields.tools = tools.map((one) => (one.function ? one : { type: 'function', function: one }));
    if (byId('tool_choice').value) fields.tool_choice = byId('tool_choice').value;
  }
  if (byId('probabilities').checked) Object.assign(fields, { logprobs: true, top_logprobs: 5 });
  return fields;
}
