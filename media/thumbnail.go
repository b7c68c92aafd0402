package media

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	_ "image/gif" // decoders for image.Decode
	"image/jpeg"
	"image/png"
	"io"
	"mime"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/image/draw"
	_ "golang.org/x/image/webp" // decoder for image.Decode

	"hanok/matrix"
	"hanok/storage"
)

// Thumbnail methods. spec: client-server-api#thumbnails
const (
	MethodCrop  = "crop"
	MethodScale = "scale"
)

// GetThumbnail says which thumbnail to open.
type GetThumbnail struct {
	Get
	Width, Height int    // what the client would like, in pixels
	Method        string // "" means scale
	// Animated thumbnails are not made: a still one answers every request.
}

// thumbnailSizes are what requests are rounded up to, so that a picture has few
// thumbnails whatever is asked for; keptThumbnails bounds those of other sizes.
var thumbnailSizes = []struct{ width, height int }{{32, 32}, {96, 96}, {320, 240}, {640, 480}, {800, 600}}

const keptThumbnails = 16

// thumbnailTypes are the formats that thumbnails are made of.
var thumbnailTypes = map[string]bool{"image/png": true, "image/jpeg": true, "image/gif": true, "image/webp": true}

// Thumbnail returns a smaller picture of a URI's content, or the content itself when
// that is not larger than what was asked for. Errors: those of Open, 400 M_UNKNOWN when there can be no
// thumbnail of it, M_TOO_LARGE (413, 502 for a remote picture).
// spec: cs/getContentThumbnailAuthed, ss/getContentThumbnail
func (r *Repository) Thumbnail(ctx context.Context, g GetThumbnail) (*File, error) {
	if g.Width <= 0 || g.Height <= 0 {
		return nil, matrix.InvalidParam("A thumbnail needs a width and a height above 0.")
	}
	if g.Method == "" {
		g.Method = MethodScale
	}
	if g.Method != MethodCrop && g.Method != MethodScale {
		return nil, matrix.InvalidParam("The method of a thumbnail is crop or scale.")
	}
	m, err := r.find(ctx, g.Get)
	if err != nil {
		return nil, err
	}
	width, height := roundUp(g.Width, g.Height, g.Method)
	kept := filepath.Join(r.files.path("thumbnails", m.Hash), fmt.Sprintf("%dx%d-%s", width, height, g.Method))
	for _, kind := range []string{"png", "jpeg"} {
		if f, err := openThumbnail(kept, kind, m.Hash); err == nil {
			return f, nil
		}
	}
	return r.makeThumbnail(ctx, m, width, height, g.Method, kept)
}

// roundUp takes a requested size to the next one that is made. Beyond the largest, the largest:
// a client that wants more downloads the picture. A crop keeps the aspect that was asked for.
func roundUp(width, height int, method string) (int, int) {
	last := thumbnailSizes[len(thumbnailSizes)-1]
	for _, s := range thumbnailSizes {
		if width <= s.width && height <= s.height && (method == MethodScale || width*s.height == height*s.width) {
			return s.width, s.height
		}
	}
	if method == MethodScale {
		return last.width, last.height
	}
	if longer := max(width, height); longer > last.width {
		width, height = max(1, width*last.width/longer), max(1, height*last.width/longer)
	}
	return width, height
}

func (r *Repository) makeThumbnail(ctx context.Context, m storage.Media, width, height int, method, kept string) (*File, error) {
	if t, _, err := mime.ParseMediaType(m.ContentType); err != nil || !thumbnailTypes[t] && t != "application/octet-stream" {
		return nil, noThumbnail()
	}
	f, err := r.files.open(m.Hash)
	if err != nil {
		return nil, fmt.Errorf("open media: %w", err)
	}
	defer f.Close()
	// The header alone says how much memory the picture would take.
	head, format, err := image.DecodeConfig(f)
	if err != nil || head.Width <= 0 || head.Height <= 0 {
		return nil, noThumbnail()
	}
	pixels := int64(head.Width) * int64(head.Height)
	if pixels > r.o.MaxPixels {
		status := http.StatusRequestEntityTooLarge
		if m.User == "" {
			status = http.StatusBadGateway
		}
		return nil, matrix.Errorf(status, "M_TOO_LARGE", "The picture is too large to make a thumbnail of.")
	}
	if head.Width <= width && head.Height <= height && (format == "jpeg" || format == "png") && !isAnimatedPNG(f) {
		original, err := r.files.open(m.Hash)
		if err != nil {
			return nil, fmt.Errorf("open media: %w", err)
		}
		return &File{
			Content: original, close: original.Close, Size: m.Size, ContentType: "image/" + format, Filename: "thumbnail." + format, tag: m.Hash,
		}, nil
	}
	if err := r.pixels.Acquire(ctx, pixels); err != nil {
		return nil, err
	}
	defer r.pixels.Release(pixels)
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("read media: %w", err)
	}
	picture, _, err := image.Decode(f)
	if err != nil {
		return nil, noThumbnail()
	}
	small := resize(picture, width, height, method)
	var b bytes.Buffer
	kind := "png"
	if format == "jpeg" {
		kind, err = "jpeg", jpeg.Encode(&b, small, &jpeg.Options{Quality: 85})
	} else {
		err = png.Encode(&b, small)
	}
	if err != nil {
		return nil, fmt.Errorf("encode thumbnail: %w", err)
	}
	if err := r.keepThumbnail(kept+"."+kind, b.Bytes()); err != nil {
		r.o.Log.Warn().Err(err).Msg("keep a thumbnail") // it can be made again
	}
	return &File{
		Content: bytes.NewReader(b.Bytes()), Size: int64(b.Len()), ContentType: "image/" + kind, Filename: "thumbnail." + kind,
		tag: m.Hash + "-" + filepath.Base(kept),
	}, nil
}

// isAnimatedPNG looks for the chunk that must come before the picture's data.
func isAnimatedPNG(f io.ReaderAt) bool {
	head := make([]byte, 4096)
	n, _ := f.ReadAt(head, 0) // a short file is read to its end
	return bytes.Contains(head[:n], []byte("acTL"))
}

func noThumbnail() error {
	return matrix.Errorf(http.StatusBadRequest, "M_UNKNOWN", "There can be no thumbnail of this file.")
}

// keepThumbnail writes it beside the content. Not durable: it can be made again.
func (r *Repository) keepThumbnail(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if kept, err := os.ReadDir(filepath.Dir(path)); err != nil || len(kept) >= keptThumbnails {
		return err
	}
	tmp, err := os.CreateTemp(r.files.temporary(), "")
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return nil
}

func openThumbnail(kept, kind, hash string) (*File, error) {
	f, err := os.Open(kept + "." + kind)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &File{
		Content: f, close: f.Close, Size: info.Size(), ContentType: "image/" + kind, Filename: "thumbnail." + kind,
		tag: hash + "-" + strings.TrimSuffix(filepath.Base(kept), "."+kind),
	}, nil
}

// resize never enlarges. "scale" keeps the aspect and fits the box, "crop" fills
// the box with the middle of the picture.
func resize(src image.Image, width, height int, method string) image.Image {
	b := src.Bounds()
	w, h := b.Dx(), b.Dy()
	from := b
	if method == MethodCrop {
		// The largest part of the picture with the box's aspect.
		cw, ch := w, max(1, w*height/width)
		if ch > h {
			cw, ch = max(1, h*width/height), h
		}
		x, y := b.Min.X+(w-cw)/2, b.Min.Y+(h-ch)/2
		from = image.Rect(x, y, x+cw, y+ch)
		width, height = min(width, cw), min(height, ch)
	} else if w*height > h*width {
		width, height = min(width, w), max(1, h*min(width, w)/w)
	} else {
		width, height = max(1, w*min(height, h)/h), min(height, h)
	}
	if from == b && width == w && height == h {
		return src
	}
	dst := image.NewRGBA(image.Rect(0, 0, width, height))
	draw.BiLinear.Scale(dst, dst.Bounds(), src, from, draw.Src, nil)
	return dst
}
