// From two answers of /v1/traffic to what happened between them. Draws nothing.

const NOTHING = { count: 0, sum: 0, bounds: [], counts: [] };

/** Whether the second answer goes on from the first: the same processes, later. */
export const goesOn = (before, now) => before.processes.join() === now.processes.join() && now.at > before.at;

/** What came to a distribution since an earlier state of it, which may be missing. */
function since(before, now) {
  const old = before ?? NOTHING;
  return { bounds: now.bounds, count: now.count - old.count, sum: now.sum - old.sum,
    counts: now.counts.map((count, place) => count - (old.counts[place] ?? 0)) };
}

/** The sum of distributions with equal bounds. */
function together(distributions) {
  if (!distributions.length) return NOTHING;
  return distributions.reduce((sum, each) => ({ bounds: each.bounds, count: sum.count + each.count, sum: sum.sum + each.sum,
    counts: each.counts.map((count, place) => count + sum.counts[place]) }));
}

/**
 * A quantile of a distribution; null without observations.
 *
 * It is taken to be even within each bucket, as Prometheus' histogram_quantile does; above the last bound nothing is
 * known but that bound.
 */
export function quantile({ bounds, count, counts }, share) {
  if (count <= 0) return null;
  const wanted = share * count;
  const place = counts.findIndex((upto) => upto >= wanted);
  if (place < 0) return bounds.at(-1);
  const [from, below] = place ? [bounds[place - 1], counts[place - 1]] : [0, 0];
  const inside = counts[place] - below;
  return inside ? from + (bounds[place] - from) * ((wanted - below) / inside) : bounds[place];
}

const mean = ({ count, sum }) => (count > 0 ? sum / count : null);

const grown = (before, now) => Object.entries(now)
  .map(([key, count]) => [key, count - (before?.[key] ?? 0)]).filter(([, count]) => count > 0);

const sum = (entries) => entries.reduce((total, [, count]) => total + count, 0);

const isWatching = (route) => ["/v1/traffic", "/v1/experiments", "/v1/admin/models"].includes(route.route) && route.method === "GET";

/**
 * What happened between two answers; since the start of the process where `before` is null.
 *
 * The page's own looks at the service are left out. Latency is of the requests for lists.
 */
export function between(before, now) {
  const seconds = before ? now.at - before.at : now.started === null ? null : now.at - now.started;
  const rate = (count) => (seconds > 0 ? count / seconds : null);
  const find = (list, isSame) => list?.find(isSame);
  const routes = now.routes.filter((route) => !isWatching(route)).map((route) => {
    const old = find(before?.routes, (each) => each.method === route.method && each.route === route.route);
    const statuses = grown(old?.statuses, route.statuses);
    const taken = since(old?.seconds, route.seconds);
    return { method: route.method, route: route.route, statuses, requests: sum(statuses), rate: rate(sum(statuses)), seconds: taken };
  }).filter((route) => route.requests > 0);
  const statuses = {};
  for (const route of routes) for (const [status, count] of route.statuses) statuses[status] = (statuses[status] ?? 0) + count;
  const classes = {};
  for (const [status, count] of Object.entries(statuses)) classes[`${status[0]}xx`] = (classes[`${status[0]}xx`] ?? 0) + count;
  const sources = now.sources.map((source) => {
    const old = find(before?.sources, (each) => each.source === source.source && each.fallback_reason === source.fallback_reason);
    return { ...source, lists: source.lists - (old?.lists ?? 0) };
  }).filter((source) => source.lists > 0);
  const lists = sources.reduce((total, source) => total + source.lists, 0);
  const stages = now.stages.map((stage) => {
    const old = find(before?.stages, (each) => each.stage === stage.stage);
    const size = since(old?.batch_size, stage.batch_size);
    const wait = since(old?.wait_seconds, stage.wait_seconds);
    return { stage: stage.stage, waiting: stage.waiting, calls: size.count, size, wait, meanSize: mean(size),
      waits: [0.5, 0.95].map((share) => quantile(wait, share)) };
  });
  const latency = together(routes.filter((route) => route.method === "POST" && route.route.startsWith("/v1/recommend")).map((route) => route.seconds));
  const certified = Object.fromEntries(grown(before?.certified, now.certified));
  const judged = (certified.yes ?? 0) + (certified.no ?? 0);
  const requests = sum(Object.entries(statuses));
  return {
    seconds,
    requests,
    rate: rate(requests),
    statuses,
    classRates: Object.fromEntries(Object.entries(classes).map(([kind, count]) => [kind, rate(count)])),
    failed: requests ? (classes["5xx"] ?? 0) / requests : null,
    latency: [0.5, 0.95, 0.99].map((share) => quantile(latency, share)),
    routes,
    sources: sources.map((source) => ({ ...source, share: source.lists / lists })).sort((one, other) => other.lists - one.lists),
    lists,
    fallback: lists ? sources.filter((source) => source.fallback_reason !== null).reduce((total, source) => total + source.lists, 0) / lists : null,
    certified: judged ? (certified.yes ?? 0) / judged : null,
    stages,
    batchSize: mean(together(stages.map((stage) => stage.size))),
    wait: quantile(together(stages.map((stage) => stage.wait)), 0.95),
    refused: [...grown(before?.shed, now.shed), ...grown(before?.refused, now.refused)],
    events: grown(before?.events, now.events),
    storeErrors: now.store.errors - (before?.store.errors ?? 0),
  };
}
