// The list of incidents: every name goes in as text, never as HTML. A click selects; the link is real, so that it can
// be opened in a new tab or copied. It also tells Python when the browser goes back or forward.
const COLUMNS = ["Severity", "What", "Where", "Since", "Observed", "Expected", "Loss so far", "Status"];

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function place(row) {
  const cell = element("div", "where");
  if (row.where.length === 0) cell.append(element("span", "value", "everything"));
  for (const [dimension, value] of row.where) {
    const pair = element("span", "pair");
    pair.append(element("span", "dimension", dimension), element("span", "value", value));
    pair.title = `${dimension}: ${value}`;
    cell.append(pair);
  }
  return cell;
}

function line(row, model) {
  const link = element("a", `row ${row.selected ? "selected" : ""} ${row.open ? "open" : "closed"}`);
  link.href = row.href;
  link.dataset.id = row.id;
  link.addEventListener("click", (event) => {
    if (event.metaKey || event.ctrlKey || event.shiftKey || event.button !== 0) return;
    event.preventDefault();
    model.send_msg({ picked: row.id });
  });
  const severity = element("div", "severity");
  severity.append(element("span", `chip ${row.severity}`, row.severity));
  const since = element("div", "since", row.since);
  since.append(element("span", "quiet", row.lasted));
  link.append(severity, element("div", "what", row.what), place(row), since);
  link.append(element("div", "number", row.observed), element("div", "number quiet", row.expected));
  link.append(element("div", "number", row.loss), element("div", `status ${row.status}`, row.status));
  if (row.said) link.append(element("div", "said", row.said));
  return link;
}

export function render({ model, el }) {
  const list = element("div", "list");
  const draw = () => {
    const parts = [];
    for (const group of model.groups) {
      parts.push(element("h2", "", group.title));
      if (group.rows.length === 0) {
        parts.push(element("p", "nothing", group.nothing));
        continue;
      }
      const head = element("div", "row head");
      head.append(...COLUMNS.map((name) => element("div", "", name)));
      parts.push(head, ...group.rows.map((row) => line(row, model)));
      if (group.more) parts.push(element("p", "nothing", group.more));
    }
    list.replaceChildren(...parts);
  };
  const moved = () => model.send_msg({ search: window.location.search });
  model.on("groups", draw);
  window.addEventListener("popstate", moved);
  model.on("remove", () => window.removeEventListener("popstate", moved));
  draw();
  return list;
}
