//go:build ignore

// Requests_generate writes testdata/requests.json from a checkout of the specification: for each operation
// its query parameters and a body that has every documented member.
//
//	go run requests_generate.go PATH > testdata/requests.json
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"go.yaml.in/yaml/v3"
)

type object = map[string]any

type request struct {
	Query []string `json:"query,omitempty"`
	Body  any      `json:"body,omitempty"`
}

func main() {
	out := map[string]request{}
	for prefix, dir := range map[string]string{"cs": "client-server", "ss": "server-server"} {
		files, err := filepath.Glob(filepath.Join(os.Args[1], "data/api", dir, "*.yaml"))
		check(err)
		for _, f := range files {
			doc, _ := load(f).(object)
			paths, _ := doc["paths"].(object)
			for _, methods := range paths {
				m, _ := methods.(object)
				for _, op := range m {
					if o, ok := op.(object); ok && o["operationId"] != nil {
						out[prefix+"/"+o["operationId"].(string)] = describe(o, filepath.Dir(f))
					}
				}
			}
		}
	}
	names := slices.Sorted(maps.Keys(out))
	fmt.Println("{")
	for i, name := range names {
		b, err := json.Marshal(out[name])
		check(err)
		comma := ","
		if i == len(names)-1 {
			comma = ""
		}
		fmt.Printf("%q: %s%s\n", name, bytes.TrimSpace(b), comma)
	}
	fmt.Println("}")
}

func describe(op object, dir string) (r request) {
	params, _ := op["parameters"].([]any)
	for _, p := range params {
		if param, _ := p.(object); param["in"] == "query" {
			r.Query = append(r.Query, param["name"].(string))
		}
	}
	body, _ := op["requestBody"].(object)
	content, _ := body["content"].(object)
	if media, ok := content["application/json"].(object); ok {
		r.Body = value(media["schema"], dir, 0)
	}
	return r
}

// value makes a value of a schema: its example where it is simple, else something of the right type.
func value(schema any, dir string, depth int) any {
	s, _ := schema.(object)
	if ref, ok := s["$ref"].(string); ok {
		file, _, _ := bytes.Cut([]byte(ref), []byte("#"))
		path := filepath.Join(dir, string(file))
		return value(load(path), filepath.Dir(path), depth)
	}
	kind := s["type"]
	if kinds, ok := kind.([]any); ok {
		kind = kinds[0]
	}
	if depth > 7 {
		return nil
	}
	members := object{}
	merge := func(v any) {
		if o, ok := v.(object); ok {
			maps.Copy(members, o)
		}
	}
	for _, combination := range []string{"allOf", "anyOf", "oneOf"} {
		parts, _ := s[combination].([]any)
		for i, part := range parts {
			if combination != "allOf" && i > 0 {
				break
			}
			v := value(part, dir, depth)
			if _, ok := v.(object); !ok && len(parts) > 0 && kind == nil {
				return v
			}
			merge(v)
		}
	}
	properties, _ := s["properties"].(object)
	for name, p := range properties {
		members[name] = value(p, dir, depth+1)
	}
	if more, ok := s["additionalProperties"].(object); ok && len(members) == 0 {
		members["example"] = value(more, dir, depth+1)
	}
	if patterns, ok := s["patternProperties"].(object); ok {
		for _, p := range patterns {
			members["ed25519:example"] = value(p, dir, depth+1)
			break
		}
	}
	if len(members) == 0 && s["example"] != nil {
		return s["example"]
	}
	switch kind {
	case "array":
		return []any{value(s["items"], dir, depth+1)}
	case "integer", "number":
		return 1
	case "boolean":
		return true
	case "string":
		if enum, ok := s["enum"].([]any); ok {
			return enum[0]
		}
		return "example"
	}
	return members
}

var loaded = map[string]any{}

func load(path string) any {
	if v, ok := loaded[path]; ok {
		return v
	}
	b, err := os.ReadFile(path)
	check(err)
	var v any
	check(yaml.Unmarshal(b, &v))
	loaded[path] = v
	return v
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
