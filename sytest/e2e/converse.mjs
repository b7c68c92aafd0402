// Two people on two servers hold an encrypted conversation, with matrix-js-sdk and its Rust crypto.
//
// Environment: SERVER_A, SERVER_B (base URLs), and ENCRYPTION=asked if the servers leave it to clients whether rooms are encrypted. Every step is one line on standard output. When the servers
// are to be killed and started again the line is "RESTART", and an answer on standard input is awaited.

import assert from "node:assert/strict";
import { createInterface } from "node:readline";

// matrix-js-sdk 43 is made for Node 22.
Promise.withResolvers ??= function () {
    let resolve, reject;
    const promise = new this((a, b) => ([resolve, reject] = [a, b]));
    return { promise, resolve, reject };
};

// The crypto module logs to the console whatever the client's logger is.
const quiet = process.env.VERBOSE ? {} : { trace() {}, debug() {}, info() {}, log() {}, warn() {}, error() {} };
Object.assign(console, quiet);
const logger = { trace() {}, debug() {}, info() {}, warn() {}, error() {}, getChild: () => logger };

const sdk = await import("matrix-js-sdk");
const { SlidingSync } = await import("matrix-js-sdk/lib/sliding-sync.js");
const { logger: globalLogger } = await import("matrix-js-sdk/lib/logger.js");
if (!process.env.VERBOSE) globalLogger.setLevel?.("silent");

const started = performance.now();
function step(text) {
    const seconds = ((performance.now() - started) / 1000).toFixed(1).padStart(5);
    process.stdout.write(`${seconds} s  ${text}\n`);
}

const input = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

// until waits for a condition, looking again after every event of the client.
function until(client, what, condition, seconds = 30) {
    const { promise, resolve, reject } = Promise.withResolvers();
    const names = ["sync", "event", "Event.decrypted", "Room.timeline", "Room.myMembership", "RoomState.members", "Room.localEchoUpdated"];
    const look = async () => {
        const found = await condition();
        if (found) resolve(found);
    };
    const again = () => look().catch(reject);
    const poll = setInterval(again, 200);
    const timeout = setTimeout(() => reject(new Error(`waited ${seconds} s in vain: ${what}`)), seconds * 1000);
    for (const n of names) client.on(n, again);
    again();
    return promise.finally(() => {
        clearInterval(poll);
        clearTimeout(timeout);
        for (const n of names) client.off(n, again);
    });
}

async function open(baseUrl, credentials, secrets) {
    const client = sdk.createClient({
        baseUrl,
        userId: credentials.user_id,
        deviceId: credentials.device_id,
        accessToken: credentials.access_token,
        ...(process.env.VERBOSE ? {} : { logger }),
        cryptoCallbacks: {
            getSecretStorageKey: async ({ keys }) => [Object.keys(keys)[0], secrets.key],
            cacheSecretStorageKey: (_id, _info, key) => (secrets.key = key),
        },
    });
    await client.initRustCrypto({ useIndexedDB: false });
    return client;
}

async function start(client, slidingSync) {
    await client.startClient({ initialSyncLimit: 20, slidingSync });
    await until(client, "the first sync", () => client.isInitialSyncComplete());
}

// slidingSync is a window on the rooms like the one that Element X opens.
function slidingSync(client, baseUrl) {
    const room = { timeline_limit: 20, required_state: [["m.room.member", "$LAZY"], ["m.room.member", "$ME"], ["m.room.encryption", ""], ["m.room.name", ""], ["m.room.create", ""]] };
    return new SlidingSync(baseUrl, new Map([["all_rooms", { ...room, ranges: [[0, 19]], filters: {} }]]), room, client, 30_000);
}

const password = "한옥 house 1!";

async function signUp(baseUrl, localpart) {
    const anonymous = sdk.createClient({ baseUrl, ...(process.env.VERBOSE ? {} : { logger }) });
    const request = { username: localpart, password, initial_device_display_name: `${localpart}'s first device` };
    const challenge = await anonymous.registerRequest(request).then(
        () => assert.fail("registration without authentication was accepted"),
        (error) => error.data,
    );
    assert.ok(challenge.session && challenge.flows?.length, "401 with a session and flows");
    const credentials = await anonymous.registerRequest({ ...request, auth: { type: "m.login.dummy", session: challenge.session } });
    const secrets = {};
    const client = await open(baseUrl, credentials, secrets);
    await start(client);
    const crypto = client.getCrypto();
    const authUploadDeviceSigningKeys = (makeRequest) =>
        makeRequest(null).catch((error) =>
            makeRequest({
                type: "m.login.password",
                identifier: { type: "m.id.user", user: credentials.user_id },
                password,
                session: error.data.session,
            }),
        );
    await crypto.bootstrapCrossSigning({ authUploadDeviceSigningKeys });
    const recoveryKey = await crypto.createRecoveryKeyFromPassphrase();
    secrets.key = recoveryKey.privateKey;
    await crypto.bootstrapSecretStorage({ createSecretStorageKey: async () => recoveryKey, setupNewSecretStorage: true, setupNewKeyBackup: true });
    assert.ok(await crypto.isCrossSigningReady(), "cross-signing is ready");
    await until(client, "the key backup", () => crypto.getActiveSessionBackupVersion());
    return { client, baseUrl, secrets, name: localpart, id: credentials.user_id };
}

const said = new Map(); // event IDs by text

// say sends a text and checks that what the server holds is ciphertext.
async function say(person, roomId, body) {
    const { event_id: id } = await person.client.sendTextMessage(roomId, body);
    const raw = await person.client.fetchRoomEvent(roomId, id);
    assert.equal(raw.type, "m.room.encrypted");
    assert.equal(raw.content.algorithm, "m.megolm.v1.aes-sha2");
    assert.ok(!JSON.stringify(raw).includes(body), "the server sees the text");
    said.set(body, id);
    return id;
}

async function reads(person, roomId, id, body, seconds = 30) {
    const event = await until(
        person.client,
        `${person.name} decrypts ${JSON.stringify(body)}`,
        () => {
            const found = person.client.getRoom(roomId)?.findEventById(id);
            return found && !found.isBeingDecrypted() && !found.isDecryptionFailure() && found.getType() === "m.room.message" && found;
        },
        seconds,
    );
    assert.ok(event.isEncrypted());
    assert.equal(event.getContent().body, body);
    step(`${person.name} decrypts: ${body}`);
}

// logInElsewhere logs a person in on a new device, which is verified, and gets the keys of the rooms from the backup.
async function logInElsewhere(person, name, syncWith) {
    // The client uploads keys at its leisure: one of anna's messages, one of bert's own.
    const inBackup = async () => (await person.client.http.authedRequest("GET", "/room_keys/version")).count;
    await until(person.client, `the room's keys are in ${person.name}'s backup`, async () => (await inBackup()) >= 2);
    const anonymous = sdk.createClient({ baseUrl: person.baseUrl, ...(process.env.VERBOSE ? {} : { logger }) });
    const login = await anonymous.loginRequest({ type: "m.login.password", identifier: { type: "m.id.user", user: person.name }, password });
    const other = { ...person, name, client: await open(person.baseUrl, login, person.secrets) };
    await start(other.client, syncWith?.(other.client, person.baseUrl));
    const crypto = other.client.getCrypto();
    assert.ok(await crypto.userHasCrossSigningKeys(person.id, true), `${person.name}'s cross-signing keys are on the server`);
    await crypto.bootstrapCrossSigning({}); // takes the private keys from secret storage
    await until(person.client, `${person.name}'s first device sees that the new one is cross-signed`, async () =>
        (await person.client.getCrypto().getDeviceVerificationStatus(person.id, login.device_id))?.crossSigningVerified,
    );
    await crypto.loadSessionBackupPrivateKeyFromSecretStorage();
    await crypto.restoreKeyBackup();
    return other;
}

// readsOld checks that messages from before a device was there can be read on it.
async function readsOld(person, roomId, bodies) {
    for (const body of bodies) {
        const id = said.get(body);
        const event = await until(person.client, `${person.name} finds ${JSON.stringify(body)}`, () => person.client.getRoom(roomId)?.findEventById(id));
        await person.client.decryptEventIfNeeded(event); // old messages are not before they are shown
        await reads(person, roomId, id, body);
    }
}

async function main() {
    const [anna, bert] = await Promise.all([signUp(process.env.SERVER_A, "anna"), signUp(process.env.SERVER_B, "bert")]);
    step(`${anna.id} and ${bert.id} have signed up, with cross-signing and key backup`);

    const asked = process.env.ENCRYPTION === "asked";
    const encryption = { type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } };
    const { room_id: roomId } = await anna.client.createRoom({
        preset: "private_chat",
        name: "The yard",
        invite: [bert.id],
        initial_state: asked ? [encryption] : [],
    });
    step(`anna makes the room ${roomId} and invites bert`);

    await until(bert.client, "bert is invited", () => bert.client.getRoom(roomId)?.getMyMembership() === "invite");
    await bert.client.joinRoom(roomId);
    await until(bert.client, "bert is in the room", () => bert.client.getRoom(roomId)?.getMyMembership() === "join");
    await until(anna.client, "anna sees bert", () => anna.client.getRoom(roomId)?.getMember(bert.id)?.membership === "join");
    step("bert joins over federation");

    for (const person of [anna, bert]) {
        assert.ok(await person.client.getCrypto().isEncryptionEnabledInRoom(roomId), `${person.name}'s client encrypts`);
    }
    step(asked ? "the room is encrypted" : "the room is encrypted, although nobody asked for it");

    const first = "Hello bert, the tea is ready";
    await reads(bert, roomId, await say(anna, roomId, first), first);
    const second = "Coming over, anna";
    await reads(anna, roomId, await say(bert, roomId, second), second);

    for (const person of asked ? [] : [anna, bert]) {
        const plain = () =>
            person.client.http.authedRequest("PUT", `/rooms/${encodeURIComponent(roomId)}/send/m.room.message/plain`, undefined, { msgtype: "m.text", body: "plain" });
        await assert.rejects(plain, (error) => error.errcode === "M_FORBIDDEN" && error.data.error.length > 40);
    }
    if (!asked) step("a message in the clear is refused on both servers");

    const bytes = globalThis.crypto.getRandomValues(new Uint8Array(10_000));
    const { content_uri: uri } = await anna.client.uploadContent(new Blob([bytes]), { type: "application/octet-stream", includeFilename: false });
    const url = bert.client.mxcUrlToHttp(uri, undefined, undefined, undefined, false, true, true);
    const download = await fetch(url, { headers: { Authorization: `Bearer ${bert.client.getAccessToken()}` } });
    assert.equal(download.status, 200);
    assert.deepEqual(new Uint8Array(await download.arrayBuffer()), bytes);
    step("bert downloads anna's encrypted attachment through his server");

    process.stdout.write("RESTART\n");
    await input.next();
    step("both servers were killed with SIGKILL and started again");

    const third = "Is the house still standing?";
    await reads(bert, roomId, await say(anna, roomId, third), third, 60);
    const fourth = "Every beam of it";
    await reads(anna, roomId, await say(bert, roomId, fourth), fourth, 60);

    const phone = await logInElsewhere(bert, "bert's new device");
    step("bert logs in on a new device, which gets his keys from the backup");
    await readsOld(phone, roomId, [first, third]);
    const fifth = "From the phone";
    await reads(anna, roomId, await say(phone, roomId, fifth), fifth);

    const tablet = await logInElsewhere(anna, "anna's tablet", slidingSync);
    step("anna logs in on a tablet that uses sliding sync");
    assert.equal(tablet.client.getRoom(roomId).name, "The yard");
    await readsOld(tablet, roomId, [first, third]);
    await until(phone.client, "bert's new device has heard of anna's tablet", async () =>
        (await phone.client.getCrypto().getUserDeviceInfo([anna.id])).get(anna.id)?.has(tablet.client.getDeviceId()),
    ); // what is sent before is not for it
    const sixth = "Can you read this on the tablet?";
    await reads(tablet, roomId, await say(phone, roomId, sixth), sixth);

    process.stdout.write("RESTART\n");
    await input.next();
    step("both servers were killed with SIGKILL and started again");
    const seventh = "And now?";
    await reads(tablet, roomId, await say(phone, roomId, seventh), seventh, 60);
    const eighth = "From the tablet";
    await reads(phone, roomId, await say(tablet, roomId, eighth), eighth, 60);

    await tablet.client.logout(true);
    await phone.client.logout(true);
    for (const person of [anna, bert]) person.client.stopClient();
    step("done");
}

await main().then(
    () => process.exit(0),
    (error) => {
        process.stderr.write(`${error.stack}\n`);
        process.exit(1);
    },
);
