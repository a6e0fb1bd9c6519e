// The official JavaScript client, driven by lines of JSON; see client.py, its twin.
//
//     node client.mjs http://127.0.0.1:8000 ENGINE
//
// It runs in a folder where `npm install @google/adk` was done.
import { createInterface } from 'node:readline';
import { Client } from '@google-cloud/vertexai/build/src/genai/client.js';
import { createEvent, VertexAiSessionService } from '@google/adk';



const [, , apiEndpoint, agentEngineId] = process.argv;
const client = new Client({ project: 'my-project', location: 'us-central1', apiEndpoint });
// The client would ask Google for a token; this is where it puts one into a request.
client.apiClient.clientOptions.auth = {
  addAuthHeaders: async (headers) => headers.set('Authorization', `Bearer ${process.env.KEY}`),
};
const service = new VertexAiSessionService({
  sessions: client.agentEnginesInternal.sessions,
  agentEngineId,
});
const appName = '1234567890';

const told = (session) => ({
  id: session.id,
  userId: session.userId,
  state: session.state,
  lastUpdateTime: session.lastUpdateTime / 1000,
  events: session.events.map((event) => ({ ...event, timestamp: event.timestamp / 1000 })),
});

const calls = {
  create: async ({ userId, sessionId, state, ttl }) =>
    told(await service.createSession({ appName, userId, sessionId, state, ttl })),
  get: async ({ userId, sessionId, afterTimestamp, recent }) => {
    const config = { afterTimestamp: afterTimestamp && afterTimestamp * 1000, numRecentEvents: recent };
    const found = await service.getSession({ appName, userId, sessionId, config });
    return found ? told(found) : null;
  },
  list: async ({ userId }) => (await service.listSessions({ appName, userId })).sessions.map(told),
  append: async ({ userId, sessionId, events }) => {
    const config = { numRecentEvents: 0 };
    const session = await service.getSession({ appName, userId, sessionId, config });
    for (const event of events) {
      await service.appendEvent({
        session,
        event: createEvent({ ...event, timestamp: Math.round(event.timestamp * 1000) }),
      });
    }
    return session.state;
  },
  delete: async ({ userId, sessionId }) =>
    (await service.deleteSession({ appName, userId, sessionId })) ?? null,
};

for await (const line of createInterface({ input: process.stdin })) {
  const { call, ...given } = JSON.parse(line);
  let outcome;
  try {
    outcome = { answer: await calls[call](given) };
  } catch (error) {
    outcome = { error: `${error.name}: ${error.message}` };
  }
  process.stdout.write(JSON.stringify(outcome) + '\n');
}
