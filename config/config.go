// Package config is the server's one YAML file: a typed struct whose tags hold
// the documentation that `hanok config describe` prints.
//
// Load reads one file and merges further ones over it, reports every mistake at
// once, and fills in what the operator left out. Start reading at Config. The
// zero value of every field is safe: what is dangerous must be written down.
package config

import (
	"path/filepath"
	"time"

	"hanok/matrix/roomversion"
)

// Config is the whole file. A field's `yaml` tag is its key, `doc` its
// documentation, `example` what describe prints where the default says too little.
type Config struct {
	Server       Server       `yaml:"server" doc:"Who this server is and where it listens."`
	Database     Database     `yaml:"database" doc:"Where everything but media files is kept."`
	Registration Registration `yaml:"registration" doc:"How accounts come into being. 'hanok user create' always works."`
	Privacy      Privacy      `yaml:"privacy" doc:"What may be stored, relayed and logged."`
	Rooms        Rooms        `yaml:"rooms" doc:"How rooms are made, and what people find in them."`
	Federation   Federation   `yaml:"federation" doc:"How this server talks to other homeservers."`
	Identity     Identity     `yaml:"identity" doc:"Identity servers, which know people by e-mail address or phone number."`
	Push         Push         `yaml:"push" doc:"Notifications to phones, by way of the push gateways of their apps."`
	Media        Media        `yaml:"media" doc:"Attachments, avatars and thumbnails."`
	Limits       Limits       `yaml:"limits" doc:"What one client may ask for."`
	Appservices  Appservices  `yaml:"appservices" doc:"Bridges and bots that are registered as application services."`
	TURN         TURN         `yaml:"turn" doc:"Relay for one-to-one calls; without it calls work only where peers reach each other."`
	RTC          RTC          `yaml:"rtc" doc:"Group calls, as Element Call makes them."`
	Notices      Notices      `yaml:"server_notices" doc:"Messages of the server to its users, which administrators send at /_synapse/admin/v1/send_server_notice."`
	Metrics      Metrics      `yaml:"metrics" doc:"Prometheus metrics and profiles, on a listener of their own."`
	Log          Log          `yaml:"log" doc:"The log goes to standard error. It holds nothing personal."`
}

// Server is the `server` section.
type Server struct {
	Name           string     `yaml:"name" doc:"The domain in user IDs: @alice:NAME. It can never be changed once there are users." example:"example.org"`
	PublicBaseURL  string     `yaml:"public_base_url" doc:"Where clients reach this server from outside; announced in /.well-known/matrix/client. Empty: not announced." example:"https://matrix.example.org"`
	FederationName string     `yaml:"federation_name" doc:"host:port where other servers reach this one; announced in /.well-known/matrix/server. Empty: not announced." example:"matrix.example.org:443"`
	DataDir        string     `yaml:"data_dir" doc:"The folder for the database, media and the signing key. A relative path starts at this file's folder. Empty: the folder 'data' there."`
	SigningKey     string     `yaml:"signing_key" doc:"The file with the ed25519 key that signs what this server sends, in Synapse's format. Empty: signing.key in data_dir, made on first start."`
	BehindProxy    bool       `yaml:"behind_proxy" doc:"A reverse proxy stands before the listeners: a client's address is the last in X-Forwarded-For."`
	Listeners      []Listener `yaml:"listeners" doc:"Where to listen. At least one must serve clients."`
}

// Listener is one address to listen on.
type Listener struct {
	Address        string   `yaml:"address" doc:"IP and port; an empty IP means every address of the machine." example:"127.0.0.1:8008"`
	Serve          []string `yaml:"serve" doc:"Which APIs: client, federation, or both. Empty: both."`
	TLSCertificate string   `yaml:"tls_certificate" doc:"PEM file with the certificate chain. Empty: plain HTTP, for use behind a reverse proxy."`
	TLSKey         string   `yaml:"tls_key" doc:"PEM file with the certificate's private key."`
	MaxConnections int      `yaml:"max_connections" doc:"How many connections may be open at a time; each of a client that waits for news is one. When all are taken, those go first on which nothing is asked, then some of the address that has most. Empty: 10,000, which take some 100 MB if nothing is asked on them, 250 with TLS."`
}

// Serves reports whether the listener serves an API ("client", "federation").
func (l Listener) Serves(api string) bool {
	if len(l.Serve) == 0 {
		return true
	}
	for _, s := range l.Serve {
		if s == api {
			return true
		}
	}
	return false
}

// Database is the `database` section.
type Database struct {
	URL string `yaml:"url" doc:"sqlite:PATH for the embedded database, or postgres://USER:PASSWORD@HOST/NAME. Empty: sqlite, hanok.db in data_dir."`
}

// Registration is the `registration` section.
type Registration struct {
	Open         bool     `yaml:"open" doc:"Let anybody make an account. Leave it off unless spam is somebody's job."`
	Tokens       []string `yaml:"tokens" doc:"Registration tokens: whoever knows one may make an account (m.login.registration_token)."`
	SharedSecret string   `yaml:"shared_secret" doc:"Secret for /_synapse/admin/v1/register, by which tools make users and admins. Empty: that endpoint is off."`
	Guests       bool     `yaml:"guests" doc:"Allow guest accounts."`
	LocalOnly    bool     `yaml:"local_only" doc:"New accounts are kept to this server: they can be only in rooms that nobody of another server can enter. Change it for one user with 'hanok user federation'."`
}

// Encryption modes of the `privacy` section.
const (
	EncryptionRequired = "required"
	EncryptionDefault  = "default"
	EncryptionAllowed  = "allowed"
)

// Privacy is the `privacy` section.
type Privacy struct {
	Encryption        string   `yaml:"encryption" doc:"required: rooms are encrypted, plaintext messages are refused here and erased when they come from elsewhere. default: new rooms are encrypted unless their creator says otherwise. allowed: plain Matrix. Empty: required."`
	AllowEventTypes   []string `yaml:"allow_event_types" doc:"In mode required: further message-like event types that may be sent unencrypted, beside those that clients never encrypt. A trailing * matches any ending." example:"org.example.poll.*"`
	UnencryptedUpload Bytes    `yaml:"unencrypted_upload_limit" doc:"In mode required: the largest unencrypted image that may be uploaded (avatars, stickers). Empty: 512 KiB."`
	LogIP             bool     `yaml:"log_ip" doc:"Write client IP addresses and user agents to the log, and keep the last one of each device."`
}

// Rooms is the `rooms` section.
type Rooms struct {
	DefaultVersion string `yaml:"default_version" doc:"The room version of new rooms whose creator names none. Empty: 12. An older one lets people on servers that are behind take part."`
	LocalByDefault bool   `yaml:"local_by_default" doc:"New rooms are for users of this server only, for good, unless their creator says otherwise (m.federate)."`
	NoDummyEvents  bool   `yaml:"no_dummy_events" doc:"Do not send the empty events (org.matrix.dummy_event) by which a room that other servers have made many branches of becomes one again. Nobody is shown them."`
	ForgetOnLeave  bool   `yaml:"forget_on_leave" doc:"A room that somebody leaves, or is removed from, is forgotten at once: they do not see its history any more."`
}

// Federation is the `federation` section.
type Federation struct {
	Disabled              bool     `yaml:"disabled" doc:"Talk to no other server."`
	AllowPrivateAddresses bool     `yaml:"allow_private_addresses" doc:"Connect to loopback and private addresses too. For tests and closed networks; elsewhere it lets outsiders reach your inner network."`
	TrustedCAFiles        []string `yaml:"trusted_ca_files" doc:"PEM files with further certificate authorities to trust, beside the system's."`
	TrustedNotaries       []string `yaml:"trusted_notaries" doc:"Servers that may be asked for the keys of servers that are gone." example:"matrix.org"`
	AllowServers          []string `yaml:"allow_servers" doc:"If not empty, only these servers; * and ? are wildcards."`
	DenyServers           []string `yaml:"deny_servers" doc:"Never these servers; * and ? are wildcards."`
}

// Identity is the `identity` section.
type Identity struct {
	TrustedServers []string `yaml:"trusted_servers" doc:"Identity servers through which users may invite by e-mail address or phone number; * and ? are wildcards. Such a server learns who invites whom. Empty: none." example:"vector.im"`
}

// What the key push.details may be.
const (
	PushNone     = "none"
	PushMetadata = "metadata"
	PushAll      = "all"
)

// Push is the `push` section.
type Push struct {
	Disabled              bool     `yaml:"disabled" doc:"Send to no gateway, and refuse clients that want it."`
	Gateways              []string `yaml:"gateways" doc:"If not empty, only these gateways: host names, or host:port; * and ? are wildcards. A gateway learns when its users get messages. Empty: any that a client names." example:"push.example.org"`
	Details               string   `yaml:"details" doc:"What gateways are told of events besides their IDs, when the app asks for more (most ask for IDs only). none: nothing. metadata: sender, room name and type. all: content too, which is ciphertext and left out where the room is encrypted. Empty: none if privacy.encryption is required, else all."`
	AllowPrivateAddresses bool     `yaml:"allow_private_addresses" doc:"Send to loopback and private addresses too, and over plain HTTP. For a gateway in your own network; any user can then have this server make requests there, but sees no answers."`
}

// Media is the `media` section.
type Media struct {
	MaxUpload     Bytes `yaml:"max_upload" doc:"The largest file a user may upload. Empty: 100 MiB."`
	MaxRemote     Bytes `yaml:"max_remote" doc:"The largest file to fetch from another server. Empty: the same as max_upload."`
	UserQuota     Bytes `yaml:"user_quota" doc:"How much one user may keep here. Empty: no limit."`
	MaxPixels     int64 `yaml:"max_pixels" doc:"The largest image, in pixels, to make a thumbnail of. Empty: 40,000,000."`
	ServeLegacy   bool  `yaml:"serve_legacy" doc:"Serve media to everybody at the retired paths without access token too. Off, those paths know nothing."`
	URLPreviews   bool  `yaml:"url_previews" doc:"Fetch the web pages that clients ask about, to show title and picture beside a link. Users then tell this server which links they were sent, in encrypted rooms too."`
	RemoteMaxDays int   `yaml:"remote_max_days" doc:"Days to keep a copy of a remote file that nobody asks for. Empty: 30."`
}

// Limits is the `limits` section.
type Limits struct {
	MaxDelay         Duration `yaml:"max_delay" doc:"How far ahead users may schedule events (delayed events, by which clients leave calls they were thrown out of). Empty: 1 day."`
	MaxDelayedEvents int      `yaml:"max_delayed_events" doc:"How many events a user may have scheduled at a time. Empty: 100."`
	NoRateLimits     bool     `yaml:"no_rate_limits" doc:"Turn rate limits off. For tests only."`
}

// Appservices is the `appservices` section.
type Appservices struct {
	Directory     string `yaml:"directory" doc:"A folder with registration files, *.yaml, one for each application service. They are read when the server starts. Empty: none."`
	UnverifiedTLS bool   `yaml:"unverified_tls" doc:"Take any certificate of an application service whose URL begins with https: for self-made ones on the same machine, and for tests."`
	// Registrations are what the files say.
	Registrations []Appservice `yaml:"-"`
}

// TURN is the `turn` section.
type TURN struct {
	URIs         []string `yaml:"uris" doc:"TURN and STUN URIs to give to clients." example:"turn:turn.example.org:3478?transport=udp"`
	SharedSecret string   `yaml:"shared_secret" doc:"The TURN server's static-auth-secret: every client gets credentials of its own from it."`
	Username     string   `yaml:"username" doc:"Fixed credentials, for a TURN server without shared secret."`
	Password     string   `yaml:"password" doc:"See username."`
	Lifetime     Duration `yaml:"lifetime" doc:"How long the credentials hold. Empty: 1 day."`
}

// RTC is the `rtc` section.
type RTC struct {
	LiveKitServiceURLs []string `yaml:"livekit_service_urls" doc:"Where clients get access to a LiveKit media server (lk-jwt-service), the preferred one first; announced to clients. That service asks this server who its users are, at server.federation_name or port 8448. Empty: group calls need other servers' transports." example:"https://matrix-rtc.example.org/livekit/jwt"`
}

// Notices is the `server_notices` section.
type Notices struct {
	Localpart string `yaml:"localpart" doc:"The account that the messages come from: @LOCALPART:NAME. It is made when the server starts, nobody can log in to it, and what it says is not encrypted in any privacy mode. Empty: no server notices." example:"_server"`
	Name      string `yaml:"name" doc:"What that account and its rooms are called. Empty: Server Notices."`
	Avatar    string `yaml:"avatar" doc:"Their picture, as an mxc: URI. Empty: none."`
}

// Metrics is the `metrics` section.
type Metrics struct {
	Address string `yaml:"address" doc:"IP and port for GET /metrics and /debug/pprof. Keep it private. Empty: off." example:"127.0.0.1:9091"`
}

// Log is the `log` section.
type Log struct {
	Level  string `yaml:"level" doc:"debug, info, warn or error. Empty: info."`
	Format string `yaml:"format" doc:"json, or text for people. Empty: text on a terminal, else json."`
}

// fill puts in what may be left out. dir is the folder that relative paths start at.
func (c *Config) fill(dir string) {
	path := func(p *string, fallback, base string) {
		if *p == "" {
			*p = fallback
		}
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(base, *p)
		}
	}
	path(&c.Server.DataDir, "data", dir)
	path(&c.Server.SigningKey, filepath.Join(c.Server.DataDir, "signing.key"), dir)
	path(&c.Appservices.Directory, "", dir)
	for i := range c.Server.Listeners {
		path(&c.Server.Listeners[i].TLSCertificate, "", dir)
		path(&c.Server.Listeners[i].TLSKey, "", dir)
		or(&c.Server.Listeners[i].MaxConnections, 10_000)
	}
	for i := range c.Federation.TrustedCAFiles {
		path(&c.Federation.TrustedCAFiles[i], "", dir)
	}
	if c.Database.URL == "" || c.Database.URL == "sqlite" {
		c.Database.URL = "sqlite:hanok.db"
	}
	if rest, ok := cutSQLite(c.Database.URL); ok && !filepath.IsAbs(rest) {
		c.Database.URL = "sqlite:" + filepath.Join(c.Server.DataDir, rest)
	}
	orString(&c.Rooms.DefaultVersion, string(roomversion.Default))
	orString(&c.Privacy.Encryption, EncryptionRequired)
	or(&c.Privacy.UnencryptedUpload, 512<<10)
	details := PushAll
	if c.Privacy.Encryption == EncryptionRequired {
		details = PushNone
	}
	orString(&c.Push.Details, details)
	or(&c.Media.MaxUpload, 100<<20)
	or(&c.Media.MaxRemote, c.Media.MaxUpload)
	or(&c.Media.MaxPixels, 40_000_000)
	or(&c.Media.RemoteMaxDays, 30)
	or(&c.TURN.Lifetime, Duration(24*time.Hour))
	orString(&c.Notices.Name, "Server Notices")
	or(&c.Limits.MaxDelay, Duration(24*time.Hour))
	or(&c.Limits.MaxDelayedEvents, 100)
	orString(&c.Log.Level, "info")
}

func or[T ~int | ~int64](p *T, fallback T) {
	if *p == 0 {
		*p = fallback
	}
}

func orString(p *string, fallback string) {
	if *p == "" {
		*p = fallback
	}
}
