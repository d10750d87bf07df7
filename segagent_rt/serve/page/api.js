// The server's API. Every call gives JSON, or throws a ServerError with a sentence and a hint.

export class ServerError extends Error {
  constructor(status, message, hint) {
    super(message);
    this.status = status;
    this.hint = hint;
  }
}

const TOKEN = "segagent-token";

export class Api {
  // askToken: called when the server wants a token; resolves to one.
  constructor(askToken) {
    this.askToken = askToken;
  }

  async fetch(path, options = {}) {
    const token = sessionStorage.getItem(TOKEN);
    const headers = { ...(options.headers || {}) };
    if (token) headers.Authorization = `Bearer ${token}`;
    let answer;
    try {
      answer = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServerError(0, "The server does not answer.", "Is it still running?");
    }
    if (answer.status === 401) {
      sessionStorage.setItem(TOKEN, await this.askToken());
      return this.fetch(path, options);
    }
    if (!answer.ok) {
      const said = await answer.json().catch(() => ({}));
      throw new ServerError(answer.status, said.error || `The server answers ${answer.status}.`, said.hint);
    }
    return answer;
  }

  async get(path) {
    return (await this.fetch(path)).json();
  }

  async blob(path) {
    return (await this.fetch(path)).blob();
  }

  async post(path, body, signal) {
    const answer = await this.fetch(path, { method: "POST", signal, ...asJson(body) });
    return answer.json();
  }

  async delete(path) {
    await this.fetch(path, { method: "DELETE" });
  }

  async open(content, bundle, name) {
    const query = new URLSearchParams({ bundle, name: name.slice(0, 255) });
    const headers = { "Content-Type": "application/octet-stream" };
    const answer = await this.fetch(`/v1/images?${query}`, { method: "POST", headers, body: content });
    return answer.json();
  }

  // Server-sent events: onStep is given the object after each step. Resolves to the last one.
  async steps(path, body, signal, onStep) {
    const { headers, ...rest } = asJson(body);
    const answer = await this.fetch(path, {
      method: "POST", signal, headers: { ...headers, Accept: "text/event-stream" }, ...rest,
    });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let buffer = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return null;
      buffer += value;
      const events = buffer.split("\n\n");
      buffer = events.pop();
      for (const event of events) {
        const kind = /^event: (.*)$/m.exec(event)[1];
        const data = JSON.parse(/^data: (.*)$/m.exec(event)[1]);
        if (kind === "error") throw new ServerError(500, data.error, data.hint);
        if (kind === "done") return data;
        onStep(data);
      }
    }
  }
}

function asJson(body) {
  return { headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
}
