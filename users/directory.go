package users

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"hanok/internal/fold"
	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/storage"
)

// Directory finds users by the words of their names. Who is in it is kept by Profiles, for local users, and by whoever follows the
// memberships of others. spec: client-server-api#user-directory
type Directory struct{ *core }

// DirectoryMatch is a user found by Search.
type DirectoryMatch struct {
	UserID      matrix.UserID `json:"user_id"`
	DisplayName string        `json:"display_name,omitempty"`
	AvatarURL   string        `json:"avatar_url,omitempty"`
}

// Limits of names and of a search.
const (
	maxDirectoryWords = 20   // of one user
	maxDirectoryWord  = 64   // bytes
	maxSearchTerm     = 256  // bytes
	maxSearchWords    = 8    // of a term
	maxSearched       = 4000 // users looked at
)

// ShownProfile is what the directory shows of a name and an avatar that another server made: nothing in place of what is longer than ours may be.
func ShownProfile(name, avatar string) (string, string) {
	if utf8.RuneCountInString(name) > maxDisplayName {
		name = ""
	}
	if len(avatar) > maxAvatarURL {
		avatar = ""
	}
	return name, avatar
}

// DirectoryWords are those by which a user is found, sorted: of the display name, of the localpart, and the server's name after a colon.
func DirectoryWords(user matrix.UserID, displayName string) []string {
	words := fold.Words(fold.Text(user.Localpart()))
	words = append(words, fold.Words(fold.Text(displayName))...)
	words = append(words[:min(len(words), maxDirectoryWords-1)], ":"+fold.Text(string(user.Server())))
	for i, w := range words {
		words[i] = fold.Cut(w, maxDirectoryWord)
	}
	slices.Sort(words)
	return slices.Compact(words)
}

// searchWords splits a term, the rarest word first as far as one can tell. What follows a colon is the name of a server: "@ann:exam" is somebody called ann at one that begins with exam.
func searchWords(term string) []string {
	name, server, _ := strings.Cut(fold.Text(fold.Cut(term, maxSearchTerm)), ":")
	words := fold.Words(name)
	if server = strings.TrimSpace(server); server != "" {
		words = append(words, ":"+server)
	}
	words = words[:min(len(words), maxSearchWords)]
	for i, w := range words {
		words[i] = fold.Cut(w, maxDirectoryWord)
	}
	slices.SortStableFunc(words, func(a, b string) int {
		if aServer, bServer := a[0] == ':', b[0] == ':'; aServer != bServer {
			if aServer { // many users have it
				return 1
			}
			return -1
		}
		return len(b) - len(a)
	})
	return words
}

// Search finds users with a word that begins with each of the term's, who share a room with the one who asks or are in one that
// everybody may join or read. Users of other servers are found and shown by the name that they have in that room, as they may have
// others elsewhere that are nobody's business here. limited says that there are more, or may be.
func (d *Directory) Search(ctx context.Context, asker matrix.UserID, term string, limit int) (found []DirectoryMatch, limited bool, err error) {
	found = []DirectoryMatch{}
	words := searchWords(term)
	if len(words) == 0 {
		return found, false, nil
	}
	me, err := d.number(ctx, asker)
	if err != nil {
		return nil, false, err
	}
	seen := make(map[storage.NameNID]bool)
	page := 4 * limit
	for place, looked := (storage.DirectoryPlace{}), 0; ; page = 500 {
		users, err := storage.SearchDirectory(ctx, d.DB, me, words[0], place, page)
		if err != nil {
			return nil, false, fmt.Errorf("search users: %w", err)
		}
		if err := d.nameAsSeen(ctx, users); err != nil {
			return nil, false, fmt.Errorf("search users: %w", err)
		}
		for _, u := range users {
			place = u.Place
			if u.Shown == 0 || seen[u.Place.User] || !hasWords(DirectoryWords(u.UserID, u.Name), words) {
				continue
			}
			seen[u.Place.User] = true
			if len(found) == limit {
				return found, true, nil
			}
			found = append(found, DirectoryMatch{u.UserID, u.Name, u.Avatar})
		}
		if len(users) < page {
			return found, false, nil
		}
		if looked += len(users); looked >= maxSearched {
			return found, true, nil
		}
	}
}

// nameAsSeen gives users of other servers the name and the avatar of the membership by which they are shown.
func (d *Directory) nameAsSeen(ctx context.Context, found []storage.FoundUser) error {
	var nids []storage.EventNID
	for _, u := range found {
		if u.Shown != 0 && u.UserID.Server() != d.ServerName {
			nids = append(nids, u.Shown)
		}
	}
	if len(nids) == 0 {
		return nil
	}
	rows, err := storage.EventsByNID(ctx, d.DB, nids)
	if err != nil {
		return err
	}
	member := make(map[storage.EventNID][]byte, len(rows))
	for _, row := range rows {
		member[row.NID] = row.JSON
	}
	for i := range found {
		if u := &found[i]; u.Shown != 0 && u.UserID.Server() != d.ServerName {
			content, _ := canonicaljson.Get(member[u.Shown], "content")
			name, _ := canonicaljson.GetString(content, "displayname")
			avatar, _ := canonicaljson.GetString(content, "avatar_url")
			u.Name, u.Avatar = ShownProfile(name, avatar)
		}
	}
	return nil
}

// hasWords says whether each of the wanted begins one of the words, which are sorted.
func hasWords(words, wanted []string) bool {
	return !slices.ContainsFunc(wanted, func(prefix string) bool {
		at, _ := slices.BinarySearch(words, prefix)
		return at == len(words) || !strings.HasPrefix(words[at], prefix)
	})
}
