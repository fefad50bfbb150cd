// Dialogs: a question with fields. The browser's own <dialog> keeps the focus and closes with Esc.

import { h, visible } from "./dom.js";

let numbered = 0;

// Fields: {name, label, value, options, hint, required, type, inputmode, expected}, or {legend, fields} for a row of
// them. `act` gets their values; what it
// throws is shown, and the dialog stays. Resolves with what `act` does, or true, when it was done; false when it
// was given up.
export function ask(title, { text = [], fields = [], button, act, dangerous = false }) {
  return new Promise((resolve) => {
    const id = `dialog-${++numbered}`;
    const problem = h("p", { class: "problem", role: "alert" });
    const rows = fields.map((field) => (field.fields ? group(id, field) : input(id, field)));
    const inputs = rows.flatMap((row) => row.inputs ?? [row]);
    const submit = h("button", { type: "submit", class: dangerous ? "dangerous" : "main" }, button);
    const cancel = h("button", { type: "button", onclick: () => dialog.close() }, "Cancel");
    const form = h("form", { onsubmit: done },
      h("h2", { id: `${id}-title` }, title),
      text.map((line) => h("p", {}, line)),
      rows.map((one) => one.row),
      problem,
      h("div", { class: "buttons" }, cancel, submit));
    const dialog = h("dialog", { "aria-labelledby": `${id}-title` }, form);
    let finished = false;
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(finished);
    });

    async function done(event) {
      event.preventDefault();
      problem.textContent = "";
      const values = Object.fromEntries(inputs.map((one) => [one.field.name, value(one)]));
      const wrong = inputs.find((one) => one.field.expected !== undefined
        && one.control.value !== visible(one.field.expected));
      if (wrong) {
        problem.textContent = `Type ${visible(wrong.field.expected)} to go on.`;
        wrong.control.focus();
        return;
      }
      submit.disabled = true;
      try {
        finished = (await act(values)) ?? true;
        dialog.close();
      } catch (error) {
        problem.textContent = visible(error.message);
      } finally {
        submit.disabled = false;
      }
    }

    document.body.append(dialog);
    dialog.showModal();
  });
}

function value(one) {
  if (one.field.expected !== undefined) return one.field.expected;
  return one.field.type === "checkbox" ? one.control.checked : one.control.value;
}

function group(id, { legend, fields }) {
  const inputs = fields.map((field) => input(id, field));
  return { inputs, row: h("fieldset", {}, h("legend", {}, legend), inputs.map((one) => one.row)) };
}

function input(id, field) {
  const own = `${id}-${field.name}`;
  const described = field.hint ? `${own}-hint` : null;
  const common = { id: own, name: field.name, "aria-describedby": described, required: field.required };
  const control = field.options
    ? h("select", common, field.options.map(([text, chosen]) => h("option", { value: chosen }, text)))
    : field.type === "textarea" ? h("textarea", { ...common, rows: 4, spellcheck: "false" })
      : h("input", { ...common, type: field.type ?? "text", inputmode: field.inputmode, autocomplete: "off" });
  if (field.value !== undefined) control.value = field.value;
  const row = h("div", { class: field.type === "checkbox" ? "field check" : "field" },
    h("label", { for: own }, field.label), control,
    field.hint ? h("small", { id: described }, field.hint) : null);
  return { field, control, row };
}
