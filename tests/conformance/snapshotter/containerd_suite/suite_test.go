// Package suite runs containerd's own snapshotter test suite over a socket.
package suite

import (
	"context"
	"os"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func TestSnapshotter(t *testing.T) {
	address := os.Getenv("SNAPSHOTTER_SOCKET")
	if address == "" {
		t.Skip("SNAPSHOTTER_SOCKET names no socket")
	}
	// the name tells the suite what an overlay cannot do: rename a directory of a lower layer
	testsuite.SnapshotterSuite(t, "overlayfs", func(context.Context, string) (snapshots.Snapshotter, func() error, error) {
		connection, err := grpc.NewClient("unix://"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return nil, nil, err
		}
		client := snapshotsapi.NewSnapshotsClient(connection)
		return proxy.NewSnapshotter(client, "cvmfs-snapshotter"), connection.Close, nil
	})
}
