// An aedes broker on loopback that lets one user in: node aedes_server.mjs FOLDER PORT USER PASSWORD MILLISECONDS
// FOLDER is where npm has installed aedes. Retained messages are only in its memory; a new subscriber gets them after
// MILLISECONDS, as from a database.
import { createServer } from 'node:net'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { setTimeout } from 'node:timers/promises'
import { pathToFileURL } from 'node:url'

const [folder, port, user, password, late] = process.argv.slice(2)
const installed = (module) => import(pathToFileURL(join(folder, 'node_modules', module)))
const { Aedes } = await installed('aedes/aedes.js')
const { default: memory } = await installed('aedes-persistence/persistence.js')

const persistence = memory()
const retained = persistence.createRetainedStreamCombi.bind(persistence)
if (Number(late)) {
  persistence.createRetainedStreamCombi = (topics) => Readable.from((async function * () {
    await setTimeout(Number(late))
    yield * retained(topics)
  })())
}
const authenticate = (_client, name, word, done) => done(null, name === user && String(word) === password)
const broker = await Aedes.createBroker({ authenticate, persistence })
createServer(broker.handle).listen(Number(port), '127.0.0.1')
