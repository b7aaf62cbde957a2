// A gateway as a careful Go programmer writes it: net/http and franz-go, an answer once Kafka has acknowledged.
//
// It checks the fields of the app contract, gives the event a UUIDv7, writes the row that gateway/ writes, and is an
// idempotent producer with acks=all. It has no quotas, keys, metrics or spool: whatever these cost is our handicap.
// The body is read once into its members, which go into the row as they came; no value is decoded that is not checked.
package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"flag"
	"io"
	"log"
	"math"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	topic         = "app_interactions"
	bodyBytesMax  = 262_144
	recordTimeout = 1500 * time.Millisecond
)

var apps = map[string]bool{"demo": true}

type kind int

const (
	text kind = iota
	integer
	object
)

// In the order in which they come in a row.
var fields = []struct {
	name     string
	kind     kind
	required bool
}{
	{"event_type", text, true},
	{"document_id", text, false},
	{"position", integer, false},
	{"query", text, false},
	{"result_count", integer, false},
	{"latency_ms", integer, false},
	{"dwell_ms", integer, false},
	{"session_id", text, false},
	{"metadata", object, false},
}

type detail struct {
	Loc  []string `json:"loc"`
	Msg  string   `json:"msg"`
	Type string   `json:"type"`
}

type gateway struct {
	kafka *kgo.Client
}

func (g *gateway) track(w http.ResponseWriter, r *http.Request) {
	receivedAt := time.Now()
	app := r.PathValue("slug")
	if !apps[app] {
		refuse(w, http.StatusNotFound, "app not found")
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyBytesMax))
	if err != nil {
		refuse(w, http.StatusRequestEntityTooLarge, "the body is too large, or broke off")
		return
	}
	var event map[string]json.RawMessage
	if !utf8.Valid(body) || json.Unmarshal(body, &event) != nil || event == nil {
		answer(w, http.StatusUnprocessableEntity, map[string]any{"detail": []detail{{[]string{"body"}, "JSON decode error", "json_invalid"}}})
		return
	}
	if faults := check(event); len(faults) > 0 {
		answer(w, http.StatusUnprocessableEntity, map[string]any{"detail": faults})
		return
	}
	id := uuid7(receivedAt)
	record := &kgo.Record{Topic: topic, Key: id, Value: row(event, id, app, receivedAt, len(body)), Timestamp: receivedAt}
	done := make(chan error, 1)
	g.kafka.Produce(r.Context(), record, func(_ *kgo.Record, err error) { done <- err })
	if err := <-done; err != nil {
		w.Header().Set("Retry-After", "1")
		refuse(w, http.StatusServiceUnavailable, "Kafka did not take the event")
		return
	}
	out := make([]byte, 0, 128)
	out = append(out, `{"success":true,"event_id":"`...)
	out = append(out, id...)
	out = append(out, `","durability":"kafka"}`...)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(out)))
	w.Write(out)
}

// check returns a detail for each field that the contract does not allow. 2.0 is an integer, and becomes 2.
func check(event map[string]json.RawMessage) []detail {
	var faults []detail
	for _, field := range fields {
		value, given := event[field.name]
		if !given {
			if field.required {
				faults = append(faults, detail{[]string{"body", field.name}, "Field required", "missing"})
			}
			continue
		}
		if value[0] == 'n' && !field.required {
			continue
		}
		switch field.kind {
		case text:
			if value[0] != '"' {
				faults = append(faults, detail{[]string{"body", field.name}, "Input should be a valid string", "string_type"})
			}
		case object:
			if value[0] != '{' {
				faults = append(faults, detail{[]string{"body", field.name}, "Input should be an object", "dict_type"})
			}
		case integer:
			if _, err := strconv.ParseInt(string(value), 10, 64); err == nil {
				continue
			}
			number, err := strconv.ParseFloat(string(value), 64)
			if err != nil || number != math.Trunc(number) || math.Abs(number) >= 1<<63 {
				faults = append(faults, detail{[]string{"body", field.name}, "Input should be a valid integer", "int_type"})
				continue
			}
			event[field.name] = strconv.AppendInt(nil, int64(number), 10)
		}
	}
	return faults
}

// row is the record's value: a JSON object as ClickHouse's JSONEachRow takes it.
func row(event map[string]json.RawMessage, id []byte, app string, receivedAt time.Time, bodyBytes int) []byte {
	out := make([]byte, 0, bodyBytes+160)
	out = append(out, `{"event_id":"`...)
	out = append(out, id...)
	out = append(out, `","app":"`...)
	out = append(out, app...)
	out = append(out, `","received_at":"`...)
	out = receivedAt.UTC().AppendFormat(out, "2006-01-02T15:04:05.000Z")
	out = append(out, '"')
	known := 0
	for _, field := range fields {
		if value, given := event[field.name]; given {
			known++
			out = append(out, ',', '"')
			out = append(out, field.name...)
			out = append(out, '"', ':')
			out = append(out, value...)
		}
	}
	if known < len(event) {
		for _, field := range fields {
			delete(event, field.name)
		}
		out = append(out, `,"extra":{`...)
		for name, value := range event {
			quoted, _ := json.Marshal(name)
			out = append(out, quoted...)
			out = append(out, ':')
			out = append(out, value...)
			out = append(out, ',')
		}
		out[len(out)-1] = '}'
	}
	return append(out, '}')
}

// uuid7 is RFC 9562's version 7, as text.
func uuid7(now time.Time) []byte {
	var raw [16]byte
	rand.Read(raw[6:])
	ms := now.UnixMilli()
	for i := range 6 {
		raw[i] = byte(ms >> (40 - 8*i))
	}
	raw[6] = raw[6]&0x0f | 0x70
	raw[8] = raw[8]&0x3f | 0x80
	out := make([]byte, 36)
	hex.Encode(out[0:8], raw[0:4])
	hex.Encode(out[9:13], raw[4:6])
	hex.Encode(out[14:18], raw[6:8])
	hex.Encode(out[19:23], raw[8:10])
	hex.Encode(out[24:], raw[10:])
	out[8], out[13], out[18], out[23] = '-', '-', '-', '-'
	return out
}

func refuse(w http.ResponseWriter, status int, message string) {
	answer(w, status, map[string]any{"success": false, "status": status, "error": map[string]string{"message": message}})
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(body)
}

func main() {
	address := flag.String("address", "127.0.0.1:8000", "where to listen")
	brokers := flag.String("brokers", "127.0.0.1:9092", "Kafka's bootstrap servers")
	linger := flag.Duration("linger", 0, "how long a record waits for others")
	flag.Parse()
	kafka, err := kgo.NewClient(
		kgo.SeedBrokers(strings.Split(*brokers, ",")...),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerBatchCompression(kgo.NoCompression()),
		kgo.ProducerLinger(*linger),
		// As in gateway/: an id of our own does not choose the partition, so batches are as large as they can be.
		kgo.RecordPartitioner(kgo.StickyPartitioner()),
		kgo.RecordDeliveryTimeout(recordTimeout),
	)
	if err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	g := &gateway{kafka}
	mux.HandleFunc("POST /v1/public/apps/{slug}/interactions", g.track)
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if err := kafka.Ping(r.Context()); err != nil {
			refuse(w, http.StatusServiceUnavailable, err.Error())
		}
	})
	server := &http.Server{Addr: *address, Handler: mux, ReadHeaderTimeout: 20 * time.Second}
	go func() {
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
		<-stop
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		server.Shutdown(ctx)
		kafka.Flush(ctx)
	}()
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		log.Fatal(err)
	}
}
