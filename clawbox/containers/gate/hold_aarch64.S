// The program of a container on arm64 that is only to be there: does nothing until a signal ends it.

	.text
	.globl	_start
_start:
again:
	mov	x0, #0				// no descriptors, no timeout, no mask
	mov	x1, #0
	mov	x2, #0
	mov	x3, #0
	mov	x8, #73				// ppoll: there is no pause here
	svc	#0
	b	again
