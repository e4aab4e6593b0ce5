import { Agent, request } from "node:http";
import { endpoint, service } from "@restatedev/restate-sdk";
import { IN_FLIGHT, run, version } from "./load.mjs";

async function worker() {
  const bench = service({ name: "bench", handlers: { empty: async () => {} } });
  // On a free port, which the client registers.
  return endpoint().bind(bench).setLogger(() => {}).listen(0);
}

// Sends a request, and gives its whole answer.
function post(url, agent, body) {
  return new Promise((resolve, reject) => {
    const headers = body ? { "content-type": "application/json" } : {};
    const sent = request(url, { method: "POST", agent, headers }, (answer) => {
      let text = "";
      answer.setEncoding("utf8");
      answer.on("data", (part) => (text += part));
      answer.on("error", reject);
      answer.on("end", () => (answer.statusCode < 300 ? resolve(text) : reject(new Error(`${url}: ${text}`))));
    });
    sent.on("error", reject);
    sent.end(body);
  });
}

async function client([ingress, admin, durability], completed, port) {
  await post(`${admin}/deployments`, undefined, JSON.stringify({ uri: `http://127.0.0.1:${port}/` }));
  const agent = new Agent({ keepAlive: true, maxSockets: IN_FLIGHT });
  const url = new URL("/bench/empty", ingress);
  let calls = 0;
  return {
    about: {
      peer: "Restate",
      version: version("@restatedev/restate-sdk"),
      server: `restate-server ${version("@restatedev/restate-server")}`,
      done: "the ingress has answered the client's call with the result",
      durability,
    },
    // Its ingress takes one call a request.
    bulk: false,
    async submit() {
      const id = ++calls;
      await post(url, agent);
      completed([id]);
      return [id];
    },
    close: () => agent.destroy(),
  };
}

await run({ worker, client });
