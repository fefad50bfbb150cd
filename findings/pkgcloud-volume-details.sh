#!/bin/bash
# pkgcloud's block storage asks OpenStack for paths and sends bodies that OpenStack does not have.
#
# Seen with pkgcloud 2.2.0 (npm) on Node.js 20.20.2. By Cinder's API reference, volumes with all their
# keys are listed at /volumes/detail, and a change of a volume is {"volume": {...}}. `getVolumes(true)`
# asks for /volumes/details, which reads as a volume with the id "details", and `updateVolume` sends
# name and description without the "volume" around them. `getVolumes()` and `createVolume` are right.
#
# Output that was seen:
#     POST /v1/t/volumes {"volume":{"display_name":"a","size":1}}
#     GET /v1/t/volumes
#     GET /v1/t/volumes/details
#     PUT /v1/t/volumes/7 {"name":"b"}
#
# Exits with 1 if this has changed, with 2 if node or npm are missing.
set -euo pipefail
for tool in node npm; do
    type -P $tool >/dev/null || { echo "needs $tool" >&2; exit 2; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm install --silent --no-audit --no-fund --ignore-scripts pkgcloud@2.2.0 >/dev/null
cat >look.js <<'END'
const http = require('http');
const pkgcloud = require('pkgcloud');

const asked = [];
const server = http.createServer((request, response) => {
  let body = '';
  request.on('data', (piece) => { body += piece; });
  request.on('end', () => {
    const here = `http://127.0.0.1:${server.address().port}/v1/t`;
    const token = { id: 'token', expires: '2100-01-01T00:00:00Z', tenant: { id: 't', name: 't' } };
    const endpoints = [{ region: 'r', publicURL: here }];
    const serviceCatalog = [{ name: 'cinder', type: 'volume', endpoints }];
    const volume = { id: '7', display_name: 'a', size: 1, status: 'available' };
    const answer = request.url === '/v2.0/tokens'
      ? { access: { token, serviceCatalog, user: { id: 'u', name: 'u', roles: [] } } }
      : { volume, volumes: [volume] };
    if (request.url !== '/v2.0/tokens') asked.push(`${request.method} ${request.url} ${body}`.trim());
    response.setHeader('Content-Type', 'application/json');
    response.end(JSON.stringify(answer));
  });
});

server.listen(0, '127.0.0.1', async () => {
  const client = pkgcloud.blockstorage.createClient({
    provider: 'openstack', username: 'u', password: 'p', tenantName: 't', region: 'r',
    keystoneAuthVersion: 'v2.0', authUrl: `http://127.0.0.1:${server.address().port}`,
  });
  const call = (name, ...given) => new Promise((done, failed) =>
    client[name](...given, (error, found) => (error ? failed(error) : done(found))));
  const volume = await call('createVolume', { name: 'a', size: 1 });
  await call('getVolumes');
  await call('getVolumes', true);
  volume.name = 'b';
  await call('updateVolume', volume);
  asked.forEach((one) => console.log(one));
  const seen = asked.includes('GET /v1/t/volumes/details') && asked[3].startsWith('PUT')
    && !('volume' in JSON.parse(asked[3].split(' ')[2]));
  process.exit(seen ? 0 : 1);
});
END
node look.js
