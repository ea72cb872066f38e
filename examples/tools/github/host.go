package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"unsafe"
)

// hostCall writes {"ok": …} or {"error": "…"} to the reply and returns its length, or -1.
//
//go:wasmimport clawbox host_call
func hostCall(request unsafe.Pointer, length uint32, reply unsafe.Pointer, capacity uint32) int32

// hostCallRead copies the last call's reply from an offset on and returns how many bytes there were.
//
//go:wasmimport clawbox host_call_read
func hostCallRead(offset uint32, reply unsafe.Pointer, capacity uint32) int32

// httpRequest is what the host's method http_request takes.
type httpRequest struct {
	URL     string            `json:"url"`
	Method  string            `json:"method,omitempty"`
	Headers map[string]string `json:"headers,omitempty"`
	Body    *string           `json:"body,omitempty"`
}

// httpResponse is what it answers.
type httpResponse struct {
	Status  int               `json:"status"`
	Headers map[string]string `json:"headers"`
	Body    string            `json:"body"`
}

// call calls a method of the host and decodes its answer into result.
func call(method string, params any, result any) error {
	request, err := json.Marshal(map[string]any{"method": method, "params": params})
	if err != nil {
		return err
	}
	buffer := make([]byte, 64<<10)
	length := hostCall(unsafe.Pointer(&request[0]), uint32(len(request)), unsafe.Pointer(&buffer[0]), uint32(len(buffer)))
	if length < 0 {
		return errors.New("the host says that the call is malformed")
	}
	reply := buffer[:length]
	var answer struct {
		OK    json.RawMessage `json:"ok"`
		Error *string         `json:"error"`
		Size  int             `json:"size"`
	}
	if err := json.Unmarshal(reply, &answer); err != nil {
		return fmt.Errorf("the host's reply: %w", err)
	}
	if answer.Error != nil && answer.Size > len(buffer) { // it did not fit: fetch it
		reply = make([]byte, answer.Size)
		for offset := 0; offset < len(reply); {
			count := hostCallRead(uint32(offset), unsafe.Pointer(&reply[offset]), uint32(len(reply)-offset))
			if count <= 0 {
				return errors.New("the host's reply ended early")
			}
			offset += int(count)
		}
		answer.OK, answer.Error = nil, nil
		if err := json.Unmarshal(reply, &answer); err != nil {
			return fmt.Errorf("the host's reply: %w", err)
		}
	}
	if answer.Error != nil {
		return errors.New(*answer.Error)
	}
	return json.Unmarshal(answer.OK, result)
}
