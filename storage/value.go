package storage

import (
	"fmt"
	"math"
	"reflect"
	"unsafe"
)

// kind is the type of a value, the same for both engines.
type kind uint8

const (
	kindNull kind = iota
	kindInt
	kindFloat
	kindText
	kindBytes
)

// value is an argument or a column. It is not an interface, so that a row costs no allocation by itself.
type value struct {
	kind  kind
	int   int64
	float float64
	bytes []byte // of a text too; borrowed
}

func text(s string) value {
	return value{kind: kindText, bytes: unsafe.Slice(unsafe.StringData(s), len(s))}
}

// valueOf makes a value of an argument. A nil []byte and a nil pointer are NULL.
func valueOf(arg any) (value, error) {
	switch a := arg.(type) {
	case nil:
		return value{}, nil
	case int64:
		return value{kind: kindInt, int: a}, nil
	case int:
		return value{kind: kindInt, int: int64(a)}, nil
	case EventNID:
		return value{kind: kindInt, int: int64(a)}, nil
	case RoomNID:
		return value{kind: kindInt, int: int64(a)}, nil
	case NameNID:
		return value{kind: kindInt, int: int64(a)}, nil
	case Position:
		return value{kind: kindInt, int: int64(a)}, nil
	case bool:
		if a {
			return value{kind: kindInt, int: 1}, nil
		}
		return value{kind: kindInt}, nil
	case string:
		return text(a), nil
	case []byte:
		if a == nil {
			return value{}, nil
		}
		return value{kind: kindBytes, bytes: a}, nil
	case float64:
		return value{kind: kindFloat, float: a}, nil
	}
	v := reflect.ValueOf(arg)
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return value{}, nil
		}
		return valueOf(v.Elem().Interface())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return value{kind: kindInt, int: v.Int()}, nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		if u := v.Uint(); u <= math.MaxInt64 {
			return value{kind: kindInt, int: int64(u)}, nil
		}
		return value{}, fmt.Errorf("%d does not fit an INTEGER", v.Uint())
	case reflect.Bool:
		return valueOf(v.Bool())
	case reflect.Float32, reflect.Float64:
		return value{kind: kindFloat, float: v.Float()}, nil
	case reflect.String:
		return text(v.String()), nil
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return valueOf(v.Bytes())
		}
	}
	return value{}, fmt.Errorf("cannot store a %T", arg)
}

// any returns the value by itself, copied.
func (v value) any() any {
	switch v.kind {
	case kindInt:
		return v.int
	case kindFloat:
		return v.float
	case kindText:
		return string(v.bytes)
	case kindBytes:
		return append([]byte{}, v.bytes...)
	default:
		return nil
	}
}

// assign stores a value in what dest points to.
func (v value) assign(dest any) error {
	switch d := dest.(type) {
	case *int64:
		return v.toInt(d)
	case *int:
		var n int64
		err := v.toInt(&n)
		*d = int(n)
		return err
	case *EventNID:
		return v.toInt((*int64)(d))
	case *RoomNID:
		return v.toInt((*int64)(d))
	case *NameNID:
		return v.toInt((*int64)(d))
	case *Position:
		return v.toInt((*int64)(d))
	case *string:
		if v.kind != kindText && v.kind != kindBytes {
			return v.mismatch(dest)
		}
		*d = string(v.bytes)
		return nil
	case *[]byte:
		switch v.kind {
		case kindNull:
			*d = nil
		case kindText, kindBytes:
			*d = append([]byte{}, v.bytes...)
		default:
			return v.mismatch(dest)
		}
		return nil
	case *bool:
		var n int64
		if err := v.toInt(&n); err != nil {
			return err
		}
		*d = n != 0
		return nil
	case *float64:
		switch v.kind {
		case kindFloat:
			*d = v.float
		case kindInt:
			*d = float64(v.int)
		default:
			return v.mismatch(dest)
		}
		return nil
	case *any:
		*d = v.any()
		return nil
	}
	return v.assignReflect(reflect.ValueOf(dest))
}

func (v value) toInt(d *int64) error {
	if v.kind != kindInt {
		return v.mismatch(d)
	}
	*d = v.int
	return nil
}

func (v value) assignReflect(p reflect.Value) error {
	if p.Kind() != reflect.Pointer || p.IsNil() {
		return fmt.Errorf("scan into %v: not a pointer", p.Type())
	}
	switch d := p.Elem(); d.Kind() {
	case reflect.Pointer:
		if v.kind == kindNull {
			d.SetZero()
			return nil
		}
		to := reflect.New(d.Type().Elem())
		if err := v.assign(to.Interface()); err != nil {
			return err
		}
		d.Set(to)
		return nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		if v.kind == kindInt && !d.OverflowInt(v.int) {
			d.SetInt(v.int)
			return nil
		}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		if v.kind == kindInt && v.int >= 0 && !d.OverflowUint(uint64(v.int)) {
			d.SetUint(uint64(v.int))
			return nil
		}
	case reflect.Bool:
		if v.kind == kindInt {
			d.SetBool(v.int != 0)
			return nil
		}
	case reflect.Float32, reflect.Float64:
		var f float64
		if err := v.assign(&f); err != nil {
			return err
		}
		d.SetFloat(f)
		return nil
	case reflect.String:
		if v.kind == kindText || v.kind == kindBytes {
			d.SetString(string(v.bytes))
			return nil
		}
	case reflect.Slice:
		if d.Type().Elem().Kind() == reflect.Uint8 {
			var b []byte
			if err := v.assign(&b); err != nil {
				return err
			}
			d.SetBytes(b)
			return nil
		}
	}
	return v.mismatch(p.Interface())
}

func (v value) mismatch(dest any) error {
	return fmt.Errorf("scan %s into %T", [...]string{"NULL", "INTEGER", "REAL", "TEXT", "BLOB"}[v.kind], dest)
}
